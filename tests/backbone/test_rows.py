"""Files of rows: what is read is what was written; nothing is half-written; damage is found."""

import errno
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from backbone.rows import read_rows, writing_rows

ROWS = {"small": ("U8", (3,)), "large": ("F32", (2, 5)), "half": ("F16", ())}


def written(path, count=150, **changes):
    """Write random rows in uneven batches; what was written."""
    rng = np.random.default_rng(0)
    arrays = {
        "small": rng.integers(256, size=(count, 3)).astype(np.uint8),
        "large": rng.normal(size=(count, 2, 5)).astype(np.float32),
        "half": rng.normal(size=count).astype(np.float16),
    }
    with writing_rows(path, count, ROWS, {"name": "é", "numbers": [1, 2], **changes}) as append:
        for start, end in ((0, 64), (64, 65), (65, count)):
            append(**{name: array[start:end] for name, array in arrays.items()})
    return arrays


def test_rows_are_read_as_they_were_written_and_the_file_is_a_safetensors_file(tmp_path):
    file = tmp_path / "folder" / "rows.safetensors"
    expected = written(file)
    arrays, about = read_rows(file, "")
    assert about == {"name": "é", "numbers": [1, 2]}
    assert arrays.keys() == expected.keys()
    plain = load_file(file)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)
        assert np.array_equal(plain[name], array)
    arrays["small"][0] = 7
    assert np.array_equal(read_rows(file, "")[0]["small"], expected["small"])
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_a_changed_byte_a_missing_one_and_one_too_many_are_found(tmp_path):
    file = tmp_path / "rows.safetensors"
    written(file)
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    offsets = {
        name: entry["data_offsets"][0] for name, entry in json.loads(content[8 : 8 + length]).items() if name in ROWS
    }
    for name, size in (("small", 3), ("large", 40), ("half", 2)):
        place = 8 + length + offsets[name] + 70 * size
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=rf"{file}.* row 70 .*mend it"):
            read_rows(file, "mend it")
    for broken in (content[:-1], content + b"0", content[:100], content[:3], b"", b"0" * 400):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=f"{file} is damaged.*mend it"):
            read_rows(file, "mend it")


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path, monkeypatch):
    file = tmp_path / "rows.safetensors"
    for error in (KeyboardInterrupt(), OSError(errno.ENOSPC, "full")):
        with pytest.raises(type(error)), writing_rows(file, 4, ROWS, {}):
            raise error
    with pytest.raises(ValueError, match="0 of 4 rows"), writing_rows(file, 4, ROWS, {}):
        pass
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"GB are needed.*rows\.safetensors") as found, writing_rows(file, 4000, ROWS, {}):
        pytest.fail("it was begun")
    assert found.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())
