"""A data set in VOC layout: three training images and a test image of 8×8 pixels, with cats and dogs."""

import numpy as np
from PIL import Image

BOX = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>6</xmax><ymax>6</ymax></bndbox>"
ANNOTATION = (
    "<annotation><size><width>8</width><height>8</height><depth>3</depth></size>"
    f"<object><name>cat</name><difficult>0</difficult>{BOX}</object>"
    f"<object><name>dog</name><difficult>1</difficult>{BOX}</object></annotation>"
)


def write_voc(root):
    """Make the folder ``root``, and return it."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name in "abcd":
        (root / "Annotations" / f"{name}.xml").write_text(ANNOTATION)
        Image.fromarray(np.full((8, 8, 3), 100, dtype=np.uint8)).save(root / "JPEGImages" / f"{name}.png")
    (root / "ImageSets/Main/trainval.txt").write_text("a\nb\nc\n")
    (root / "ImageSets/Main/test.txt").write_text("d\n")
    return root
