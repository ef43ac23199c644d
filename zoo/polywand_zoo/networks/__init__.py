"""The published networks, written from their papers, with parameters named as in their authors' checkpoints.

Every network here takes what its authors' network takes: a normalised image and prompt maps. What surrounds it when it
is served (pixels to a normalised image, clicks to maps) is in `polywand_zoo.published`.
"""
