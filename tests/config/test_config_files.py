"""Reading a config file: what is wrong with it is one line with its name."""

import time

import pytest

from ibsgl.config import ConfigError, read_file

BOMB = "\n".join(["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)])
MAPPINGS = "\n".join(["a0: &a0 {x: 1, y: 2}"] + [f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}" for n in range(1, 60)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"models:\n  a: {arch: x}\n  b: {arch: y}\n  a: {arch: z}\n", "the key 'a' is there twice, in lines 2 and 4"),
        (b"seed: 1\nseed: 2\n", "the key 'seed' is there twice, in lines 1 and 2; keep one"),
        (b"a: {b: 1, b: 2}\n", "the key 'b' is there twice, in lines 1 and 1"),
        (BOMB.encode(), "it has more than 100000 values"),
        (MAPPINGS.encode(), "it has more than 100000 values"),
        (b"a: &a [*a]\n", "it has more than"),
        (("a: " + "[" * 1500).encode(), "nested too deeply"),
        ("name: caf\xe9\n".encode("latin-1"), "byte 9 is not UTF-8"),
        (b"a: [", "not readable as YAML"),
        (b"a: !!python/object/apply:os.system [ls]\n", "not readable as YAML"),
        (b"", "a config is a list of keys and values"),
        (b"- a\n- b\n", "a config is a list of keys and values"),
        (b"\x00", "not readable as YAML"),
        (b"__use_yte__: true\nname: ?__import__('os').name\n", "Snakemake would execute a config with __use_yte__"),
        (b"a: 2020-13-45\n", "not readable as YAML"),
        (b"a: !!bool zzz\n", "not readable as YAML"),
        (b'a: !!int ""\n', "not readable as YAML"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_files_name(tmp_path, content, message):
    file = tmp_path / "my.yaml"
    file.write_bytes(content)
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read_file(file)
    assert time.process_time() - began < 5
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*none\.yaml"):
        read_file(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_file(tmp_path)


def test_aliases_and_merged_keys_are_allowed(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("base: &base {lr: 1, epochs: 2}\nmine: {<<: *base, lr: 3}\n")
    assert read_file(file) == {"base": {"lr": 1, "epochs": 2}, "mine": {"lr": 3, "epochs": 2}}


def test_merges_in_two_levels_and_json(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("root: &root {lr: 1}\nmodels: {a: &base {<<: *root, lr: 3}}\nmine: {<<: *base}\n")
    assert read_file(file)["mine"] == {"lr": 3}
    file = tmp_path / "my.json"
    file.write_text('{\n\t"name": "x"\n}')
    assert read_file(file) == {"name": "x"}
