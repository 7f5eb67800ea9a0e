import uuid

import numpy as np
import pytest
from upath import UPath

from retro_jax.corpus import collect
from retro_jax.store import columns

LAYOUT = {"numbers": (np.int32, (3,)), "names": columns.LINES}


def fill(writer, blocks):
    for block in blocks:
        writer.append(numbers=np.full((2, 3), block), names=[f"n{block}", {"é": block}])
        writer.commit()


def test_rows_and_lines_come_back(tmp_path):
    writer = columns.Writer(tmp_path, LAYOUT)
    fill(writer, range(3))
    writer.close()
    table = columns.Columns(tmp_path)
    np.testing.assert_array_equal(table["numbers"][:, 0], [0, 0, 1, 1, 2, 2])
    assert list(table["names"]) == ["n0", {"é": 0}, "n1", {"é": 1}, "n2", {"é": 2}]
    assert table["names"][-1] == {"é": 2}
    with pytest.raises(IndexError):
        table["names"][6]


def test_what_no_commit_counted_was_never_written(tmp_path):
    """A writer that is killed in a block leaves the blocks before it; the next one goes on there."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fill(columns.Writer(whole, LAYOUT), range(4))
    writer = columns.Writer(killed, LAYOUT)
    writer.state["documents"] = 7
    fill(writer, range(2))
    writer.append(numbers=np.ones((5, 3)), names=["lost"])
    for file in writer._open.values():  # as far as a kill may get
        file.flush()
    assert len(columns.Columns(killed)["numbers"]) == 4
    again = columns.Writer(killed, LAYOUT)
    assert (again.rows("numbers"), again.rows("names")) == (4, 4)
    assert again.state == {"documents": 7}
    again.state = {}
    fill(again, range(2, 4))
    for path in whole.iterdir():
        assert (killed / path.name).read_bytes() == path.read_bytes()


def test_lines_come_by_the_row_and_by_the_byte(tmp_path):
    """A block has at most so many of each, but never less than one line."""
    lines = ["a" * 8, "b" * 8, "c" * 100, "d" * 8, "e" * 8, "f" * 8]  # and quotes and a line's end
    writer = columns.Writer(tmp_path, {"lines": columns.LINES})
    writer.append(lines=lines)
    writer.commit()
    stored = columns.Columns(tmp_path)["lines"]

    def names(*a):
        return ["".join(line[0] for line in block) for block in stored.blocks(*a)]

    assert names(0, 6, 2, 1000) == ["ab", "cd", "ef"]
    assert names(0, 6, 10, 22) == ["ab", "c", "de", "f"]
    assert names(1, 5, 10, 1) == ["b", "c", "d", "e"]
    assert names(0, 6, 10, 1000) == ["abcdef"]
    assert names(3, 3, 10, 1000) == []


def test_columns_without_a_row_are_empty_arrays(tmp_path):
    columns.Writer(tmp_path, LAYOUT).close()
    table = columns.Columns(tmp_path)
    assert table["numbers"].shape == (0, 3)
    assert list(table["names"]) == []


def test_rows_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match="rows of numbers"):
        columns.Writer(tmp_path, LAYOUT).append(numbers=np.ones((2, 4)))


@pytest.mark.parametrize("most", [4, 100])
def test_repeated_rows_are_all_but_the_first(most):
    rng = np.random.default_rng(0)
    values = np.array([rng.bytes(8) for _ in range(10)], "S8")[rng.integers(0, 10, 30)]
    seen, expected = set(), []
    for row, value in enumerate(values.tolist()):
        if value in seen:
            expected.append(row)
        seen.add(value)
    assert sorted(collect.repeated(values, most)) == expected


def test_scattered_rows_of_a_bucket_are_read_in_pieces(monkeypatch):
    """Memory is that of what is asked for, however far apart the rows lie."""
    directory, rows = UPath(f"memory://{uuid.uuid4()}"), np.arange(3000).reshape(1000, 3)
    layout = {"x": ("<i4", (3,))}
    part = directory / "part"
    part.mkdir(parents=True)
    for name, data in columns.encode(layout, {"x": rows}, {}).items():
        (part / name).write_bytes(data)
    columns.join(directory, layout, [part], {})
    array, sizes, read = columns.Columns(directory)["x"], [], columns.Ranges._read
    monkeypatch.setattr(columns, "_READ", 10 * 12)

    def told(self, begin, end):
        sizes.append(end - begin)
        return read(self, begin, end)

    monkeypatch.setattr(columns.Ranges, "_read", told)
    for wanted in (
        np.array([999, 3, 3, 500, 12]),
        np.array([[7, 8], [991, 990]]),
        np.array([], int),
    ):
        np.testing.assert_array_equal(array[wanted], rows[wanted])
    assert max(sizes) <= 10
    np.testing.assert_array_equal(array[5], rows[5])
