"""Print the lowest version of each dependency that pyproject.toml allows, as pip constraints."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    if found := re.match(r"([\w.-]+)\s*>=\s*([\w.]+)", requirement):
        print("{}=={}.*".format(*found.groups()))
