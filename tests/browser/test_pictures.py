"""The pictures of the documentation show what the page and --plot draw today."""

import runpy

import pytest
from PIL import Image
from support.project import ROOT


@pytest.mark.parametrize("name", ["page.png", "plot.png"])
def test_a_picture_is_of_todays_code(name):
    sources = runpy.run_path(str(ROOT / "docs/pictures.py"))["sources"]
    with Image.open(ROOT / "docs" / name) as picture:
        assert picture.info["Sources"] == sources(), "make the pictures again: tox -e pictures"
