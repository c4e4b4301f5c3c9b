"""The present page and the present --plot drew the pictures of the documentation."""

import runpy

import pytest
from PIL import Image
from support.project import ROOT


@pytest.mark.parametrize("name", ["page.png", "plot.png"])
def test_each_picture_is_of_the_present_code(name):
    sources = runpy.run_path(str(ROOT / "docs/pictures.py"))["sources"]
    with Image.open(ROOT / "docs" / name) as picture:
        assert picture.info["Sources"] == sources(), "make the pictures again: tox -e pictures"
