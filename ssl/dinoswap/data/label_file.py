"""Reads the labels of images from a CSV file: a column of paths relative to the images' folder, a column of labels.

    path,label                 a first row of names, in any order, or none
    2019/0001.jpg,cat
    2019/0002.jpg,"dog, small"

Fields are separated by commas, semicolons or tabs, the text is UTF-8, and an empty label means that there is none.
"""

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

_PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "name", "id")
_LABELS = ("label", "class", "target", "category", "class_name", "label_name", "y")


def read_labels(path: Path, files: Collection[str]) -> dict[str, str]:
    """Returns the labels of those of `files` that have one. Raises ValueError, naming the line, for a row about another
    file, and for a row that contradicts another one."""
    known = set(files)
    rows = _rows(path)
    if not rows:
        raise ValueError(f"data.labels={path}: is empty; a row is a path and a label")
    header, (path_column, label_column) = _columns(path, rows[0][1], known)
    labels: dict[str, tuple[str, int]] = {}
    for line, row in rows[header:]:
        location = f"data.labels={path}, line {line}"
        if len(row) <= max(path_column, label_column):
            raise ValueError(f"{location}: {len(row)} columns, where a path and a label are expected")
        file, label = row[path_column].strip().replace("\\", "/").removeprefix("./"), row[label_column].strip()
        if file not in known:
            raise ValueError(
                f"{location}: there is no image {file}; paths are relative to data.path, with their extension"
            )
        earlier = labels.setdefault(file, (label, line))
        if earlier[0] != label:
            raise ValueError(f"{location}: {file} is {label!r}, but {earlier[0]!r} in line {earlier[1]}")
    return {file: label for file, (label, _) in labels.items() if label}


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Returns the rows that are not empty, each with the number of its last line. Raises ValueError when the file
    cannot be read."""
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


def _columns(path: Path, first_row: Sequence[str], known: set[str]) -> tuple[bool, tuple[int, int]]:
    """Returns whether the first row is a header, and the columns of paths and labels. Raises ValueError when it is
    unclear which columns these are."""
    cells = [cell.strip() for cell in first_row]
    path_column = next((column for column, cell in enumerate(cells) if cell.removeprefix("./") in known), None)
    if path_column is not None and len(cells) == 2:
        return False, (path_column, 1 - path_column)
    names = [cell.lower() for cell in cells]
    paths = [names.index(name) for name in _PATHS if name in names]
    labels = [names.index(name) for name in _LABELS if name in names]
    if path_column is None and paths and labels:
        return True, (paths[0], labels[0])
    if len(cells) == 2:
        return True, (0, 1)
    raise ValueError(f"data.labels={path}: which of {cells[:8]} are the paths and the labels? Name them path and label")
