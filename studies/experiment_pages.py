"""Makes the pages of ``docs/experiments`` from what ``sb3-redo experiment`` wrote.

    python -m studies.experiment_pages runs/experiments/redo_small --to docs/experiments

Figures, numbers and the experiment's own words are put in anew; what stands below "What our runs show" on a page that
is there is kept, since it was written by hand.
"""

import argparse
import re
import shutil
from pathlib import Path

FOUND = "## What our runs show"


def publish(made: Path, to: Path) -> Path:
    """Write one page, with its figures and ``numbers.csv`` in a folder of its own.

    :param made: folder of an experiment, ``NAME_small``
    :param to: folder of the pages
    :return: the page
    """
    name = made.name.removesuffix("_small")
    page, folder = to / f"{name}.md", to / name
    text = (made / "experiment.md").read_text()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for figure in re.findall(r"\]\((\S+\.png)\)", text):
        sweep, _, file = Path(figure).parts
        shutil.copy(made / figure, folder / f"{sweep}_{file}")
        text = text.replace(f"]({figure})", f"]({name}/{sweep}_{file})")
    shutil.copy(made / "numbers.csv", folder / "numbers.csv")
    page.write_text(_without_counts(text) + _found(page))
    return page


def _without_counts(text: str) -> str:
    """Leave out the blocks that say which files were written where."""
    return re.sub(r"```\n.*?\n```\n\n", "", text, flags=re.DOTALL)


def _found(page: Path) -> str:
    parted = page.read_text().partition(FOUND) if page.exists() else ("", "", "")
    return f"\n{parted[1]}{parted[2]}" if parted[1] else ""


def main() -> None:
    """Publish the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("made", type=Path, nargs="+", help="folders that sb3-redo experiment wrote")
    parser.add_argument("--to", type=Path, required=True, help="folder of the pages")
    options = parser.parse_args()
    for made in options.made:
        print(publish(made, options.to))


if __name__ == "__main__":
    main()
