"""From a probability map to polygons and masks in image coordinates: outlines, simplification, rasterising."""
