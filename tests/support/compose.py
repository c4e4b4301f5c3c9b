"""The services of compose.yaml, and the example of its settings."""

import yaml
from dotenv import dotenv_values

from support.project import ROOT

SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
EXAMPLE = dotenv_values(ROOT / ".env.example")
