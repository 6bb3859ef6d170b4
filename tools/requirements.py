"""Print the requirements of dependency groups of pyproject.toml, one a line, for a pip without `--group`."""

import shlex
import sys
import tomllib
from pathlib import Path

groups = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["dependency-groups"]
for name in sys.argv[1:]:
    print("\n".join(shlex.quote(requirement) for requirement in groups[name]))
