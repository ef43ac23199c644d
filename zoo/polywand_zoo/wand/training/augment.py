"""Other light, other cameras: changes of a crop's colours and sharpness."""

import cv2
import numpy as np
from numpy.random import Generator

from polywand_zoo.wand.training.dataset import Pixels


def recolour(image: Pixels, random: Generator) -> Pixels:
    """Change brightness, contrast, colour, sharpness, noise and compression of an RGB crop, each only now and then."""
    if random.random() < 0.85:
        image = cv2.LUT(image, _curves(random))
    if random.random() < 0.35:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
        kept = 0.0 if random.random() < 0.15 else random.uniform(0.4, 1.5)
        image = np.clip(grey + (image.astype(np.float32) - grey) * kept, 0, 255).astype(np.uint8)
    if random.random() < 0.12:
        size = image.shape[0]
        smaller = int(size / random.uniform(1.3, 2.5))
        image = cv2.resize(cv2.resize(image, (smaller, smaller), interpolation=cv2.INTER_AREA), (size, size))
    elif random.random() < 0.1:
        image = cv2.GaussianBlur(image, (0, 0), random.uniform(0.4, 1.5))
    elif random.random() < 0.1:
        image = cv2.addWeighted(image, 1.6, cv2.GaussianBlur(image, (0, 0), 1.5), -0.6, 0)
    if random.random() < 0.12:
        noise = random.standard_normal(image.shape, dtype=np.float32) * random.uniform(2, 14)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if random.random() < 0.15:
        quality = int(random.integers(25, 85))
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    return image


def _curves(random: Generator) -> Pixels:
    """Make a tone curve for each channel: [256, 1, 3]."""
    values = np.repeat(np.arange(256, dtype=np.float32)[:, None], 3, axis=1)
    values = (values - 128) * random.uniform(0.65, 1.35) + 128 + random.uniform(-30, 30)
    if random.random() < 0.5:
        values = values * random.uniform(0.85, 1.15, 3)
    values = np.clip(values, 0, 255)
    if random.random() < 0.25:
        values = 255 * (values / 255) ** random.uniform(0.6, 1.6)
    return values.astype(np.uint8)[:, None]
