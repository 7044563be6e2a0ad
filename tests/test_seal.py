from __future__ import annotations

import pytest

from treering.seal import SEAL, damage, seal


@pytest.fixture
def sealed(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "sub" / "b").write_bytes(b"content")
    seal(tmp_path)
    return tmp_path


def test_what_was_written_is_intact(sealed):
    assert damage(sealed) is None
    seal(sealed)
    assert damage(sealed) is None


@pytest.mark.parametrize("name", ["a", "sub/b", SEAL])
def test_every_flipped_bit_and_every_cut_is_found(sealed, name):
    whole = (sealed / name).read_bytes()
    for position in range(len(whole)):
        (sealed / name).write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        found = damage(sealed)
        if name == SEAL and found is None:  # white space of the record means nothing
            assert whole[position : position + 1].isspace()
            continue
        assert found
        (sealed / name).write_bytes(whole[:position])
        assert damage(sealed)
    (sealed / name).unlink()
    assert "missing" in str(damage(sealed))


@pytest.mark.parametrize(
    "record",
    ["[]", '"x"', '{"a": 1}', '{"a": {}}', '{"../a": {"bytes": 1, "sha256": ""}}', '{"' + "x" * 5_000 + '": {}}', ""],
)
def test_a_record_of_another_shape_is_damage(sealed, record):
    (sealed / SEAL).write_text(record)
    assert damage(sealed)


def test_a_link_in_place_of_a_file_is_damage(sealed):
    (sealed / "a").rename(sealed / "elsewhere")
    (sealed / "a").symlink_to(sealed / "elsewhere")
    assert "link" in str(damage(sealed))
