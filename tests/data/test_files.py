from pathlib import Path

import pytest

from moeworks.data.files import MOST_NAMED_DOMAINS, SUPPORTED, find_files
from moeworks.errors import DataError


def fill(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    return root


def labels(*specs: str | Path) -> dict[str, str]:
    return {file.path.name: file.domain for file in find_files(tuple(map(str, specs)))}


def test_a_folder_is_read_with_its_subfolders_in_sorted_order(tmp_path: Path) -> None:
    fill(tmp_path, "b/x.py", "b/deep/y.rs", "a/z.jsonl", "top.md", "a/picture.png", ".git/config.txt")
    fill(tmp_path, "b/__pycache__/x.py", "a/.hidden.txt")
    found = [str(file.path.relative_to(tmp_path)) for file in find_files((str(tmp_path),))]
    assert found == ["a/z.jsonl", "b/deep/y.rs", "b/x.py", "top.md"]


def test_the_domain_is_the_top_folder_or_the_name_of_a_file_beside_the_folders(tmp_path: Path) -> None:
    fill(tmp_path, "law/a.txt", "law/deep/b.txt", "mail/c.txt", "readme.md")
    assert labels(tmp_path) == {"a.txt": "law", "b.txt": "law", "c.txt": "mail", "readme.md": "readme"}


def test_few_files_in_a_flat_folder_are_domains_by_name(tmp_path: Path) -> None:
    fill(tmp_path, "man_de.txt", "docs_python.txt")
    assert labels(tmp_path) == {"man_de.txt": "man_de", "docs_python.txt": "docs_python"}


def test_many_files_in_a_flat_folder_are_domains_by_suffix(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{number}.TXT" for number in range(MOST_NAMED_DOMAINS)), "x.py")
    assert set(labels(tmp_path).values()) == {"txt", "py"}


def test_a_glob_labels_below_its_fixed_part_and_leaves_other_kinds_out(tmp_path: Path) -> None:
    fill(tmp_path, "a/one.txt", "b/two.txt", "b/two.png", "three.txt")
    assert labels(tmp_path / "*" / "*") == {"one.txt": "a", "two.txt": "b"}
    assert labels(tmp_path / "**" / "t*.txt") == {"two.txt": "b", "three.txt": "three"}


def test_files_given_one_by_one_share_the_rule_of_their_folder(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{number}.md" for number in range(MOST_NAMED_DOMAINS + 1)))
    few = sorted(tmp_path.iterdir())[:2]
    assert labels(*few) == {path.name: path.stem for path in few}
    assert set(labels(*tmp_path.iterdir()).values()) == {"md"}


def test_a_single_file_may_have_any_suffix_or_none(tmp_path: Path) -> None:
    fill(tmp_path, "LICENSE", "notes.text")
    assert labels(tmp_path / "LICENSE", tmp_path / "notes.text") == {
        "LICENSE": "LICENSE",
        "notes.text": "notes",
    }


def test_a_file_named_twice_counts_once_where_it_came_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "sub/a.txt", "sub/b.txt")
    monkeypatch.chdir(tmp_path)
    found = find_files((".", "sub/b.txt", "sub/*.txt", str(tmp_path / "sub")))
    assert [(str(file.path), file.domain) for file in found] == [("sub/a.txt", "sub"), ("sub/b.txt", "sub")]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    fill(tmp_path, "a[1].txt", "a1.txt")
    assert labels(tmp_path / "a[1].txt") == {"a[1].txt": "a[1]"}


def test_a_name_that_is_not_utf8_gives_a_label_that_is(tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.txt"
    try:
        path.write_text("text")
    except (OSError, UnicodeError):
        pytest.skip("the file system takes UTF-8 names only")
    assert [file.domain for file in find_files((str(tmp_path),))] == ["caf\ufffd"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no_such_folder: no such file or folder"):
        find_files((str(tmp_path / "no_such_folder"),))
    with pytest.raises(DataError, match=r"\*\.txt: matches nothing"):
        find_files((str(tmp_path / "*.txt"),))


def test_a_folder_or_glob_without_a_supported_kind_lists_the_kinds(tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    for spec in (tmp_path, tmp_path / "*"):
        with pytest.raises(
            DataError, match=r"no file of a supported kind: .*\.jsonl.*\.parquet.*\.py.*\.txt"
        ) as caught:
            find_files((str(spec),))
        assert all(suffix in str(caught.value) for suffix in SUPPORTED)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(root: Path, onerror: object) -> list:
        onerror(PermissionError(13, "Permission denied", str(root / "locked")))
        return []

    monkeypatch.setattr("moeworks.data.files.os.walk", walk)
    with pytest.raises(DataError, match=r"locked: cannot be read: Permission denied"):
        find_files((str(tmp_path),))
