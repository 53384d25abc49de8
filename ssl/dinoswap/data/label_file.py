"""Labels of images from a CSV file: a column of paths relative to the images' folder, a column of labels.

    path,label                 a first row of names, in any order, or none
    2019/0001.jpg,cat
    2019/0002.jpg,"dog, small"

Separated by commas, semicolons or tabs, in UTF-8. An empty label is none.
"""

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

_PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "name", "id")
_LABELS = ("label", "class", "target", "category", "class_name", "label_name", "y")


def read_labels(path: Path, files: Collection[str]) -> dict[str, str]:
    """The labels of those of `files` that have one. Raises ValueError, naming the line, for a row about another file,
    or that says something else than another row."""
    known = set(files)
    rows = _rows(path)
    if not rows:
        raise ValueError(f"data.labels={path}: is empty; a row is a path and a label")
    header, (at, label_at) = _columns(path, rows[0][1], known)
    labels: dict[str, tuple[str, int]] = {}
    for line, row in rows[header:]:
        where = f"data.labels={path}, line {line}"
        if len(row) <= max(at, label_at):
            raise ValueError(f"{where}: {len(row)} columns, where a path and a label are expected")
        file, label = row[at].strip().replace("\\", "/").removeprefix("./"), row[label_at].strip()
        if file not in known:
            raise ValueError(
                f"{where}: there is no image {file}; paths are relative to data.path, with their extension"
            )
        before = labels.setdefault(file, (label, line))
        if before[0] != label:
            raise ValueError(f"{where}: {file} is {label!r}, but {before[0]!r} in line {before[1]}")
    return {file: label for file, (label, _) in labels.items() if label}


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Rows that are not empty, with the number of their last line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
            return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except OSError as error:
        raise ValueError(f"data.labels={path}: {error.strerror}; give a CSV file of paths and labels") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"data.labels={path}: is not in UTF-8 ({error}); convert it") from error
    except csv.Error as error:
        raise ValueError(f"data.labels={path}, line {reader.line_num}: {error}") from error


def _columns(path: Path, first: Sequence[str], known: set[str]) -> tuple[bool, tuple[int, int]]:
    """Whether the first row is one of names, and the columns of paths and labels."""
    cells = [cell.strip() for cell in first]
    found = next((column for column, cell in enumerate(cells) if cell.removeprefix("./") in known), None)
    if found is not None and len(cells) == 2:
        return False, (found, 1 - found)
    names = [cell.lower() for cell in cells]
    paths = [names.index(name) for name in _PATHS if name in names]
    labels = [names.index(name) for name in _LABELS if name in names]
    if found is None and paths and labels:
        return True, (paths[0], labels[0])
    if len(cells) == 2:
        return True, (0, 1)
    raise ValueError(f"data.labels={path}: which of {cells[:8]} are the paths and the labels? Name them path and label")
