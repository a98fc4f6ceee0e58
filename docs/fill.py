"""Write what documents take from code and recorded runs: `python docs/fill.py`.

With `--check` nothing is written, and it fails if something would change.

- result tables in README.md and docs/results/, from notes/results/
- docs/cli.md from the declarations of the commands, docs/yaml.md from the models of the files
- configs/schema/study.json and task.json, which the files of configs/ name for editors
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from filling.cli_page import cli_page  # noqa: E402
from filling.tables import filled  # noqa: E402
from filling.yaml_page import yaml_page  # noqa: E402

from plr.study.schema import SCHEMAS, file_schema  # noqa: E402


def written() -> dict[Path, str]:
    """Compute every file that this script writes, by its path."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    files = {page: filled(page.read_text(encoding="utf-8"), ROOT / "notes" / "results", page.parent) for page in pages}
    files[ROOT / "docs" / "cli.md"] = cli_page()
    files[ROOT / "docs" / "yaml.md"] = yaml_page()
    for which in SCHEMAS:
        schema = json.dumps(file_schema(which), ensure_ascii=False, indent=1) + "\n"
        files[ROOT / "configs" / "schema" / f"{which}.json"] = schema
    return files


def main() -> int:
    stale = [path for path, text in written().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what docs/fill.py writes")
        return int(bool(stale))
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(written()[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
