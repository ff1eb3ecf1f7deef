"""The generated file shows every setting with its default, and stays valid when uncommented."""

import re
import tomllib

from lcp_gateway.config import Group, load, specs
from lcp_gateway.config.docs import SAMPLE_COLUMNS, sample_file
from lcp_gateway.config.tables import columns

TEXT = sample_file()
PLAIN = [spec for spec in specs().values() if not spec.form.row]
TABLES = [spec for spec in specs().values() if spec.form.row]
SETTING = re.compile(r"^#(?=[\w\[])", re.MULTILINE)


def loaded(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    path.chmod(0o600)
    return load(flags={}, environ={}, config_path=path)


def test_as_it_is_it_changes_nothing(tmp_path):
    assert tomllib.loads(TEXT) == {}
    found = loaded(tmp_path, TEXT)
    assert found.settings == load(flags={}, environ={}, config_path=tmp_path / "config.toml").settings
    assert not found.warnings


def test_every_setting_stands_in_it_once_in_the_order_of_the_reference():
    assert re.findall(r"^#(\w+) = ", TEXT.split("=== Tables ===")[0], re.MULTILINE) == [spec.name for spec in PLAIN]
    for spec in TABLES:
        assert len(re.findall(rf"^#\[+{spec.name}[\].]", TEXT, re.MULTILINE)) == 1


def test_the_groups_are_those_of_the_reference():
    titles = re.findall(r"^# === (.+?) =+$", TEXT, re.MULTILINE)
    assert titles == [*Group, "Tables"]


def test_a_setting_has_its_description_its_type_and_its_other_names(subtests):
    prose = " ".join(TEXT.replace("\n#", "").split())
    for spec in specs().values():
        with subtests.test(spec.name):
            assert " ".join(spec.description.split()) in prose
            names = [spec.environment, *filter(None, (spec.openai_serve, spec.openclaw))]
            assert f"Type: {spec.form.name}. Environment: {', '.join(names)}." in prose


def test_a_secret_is_called_one(subtests):
    for spec in PLAIN:
        if spec.secret:
            with subtests.test(spec.name):
                (before,) = re.findall(rf"((?:^# .*\n)+)#{spec.name} = ", TEXT, re.MULTILINE)
                assert "A secret:" in before


def test_a_setting_that_is_uncommented_has_its_default(tmp_path, subtests):
    for spec in PLAIN:
        line = re.findall(rf"^#({spec.name} = .*)$", TEXT, re.MULTILINE)[0]
        with subtests.test(spec.name):
            found = loaded(tmp_path, line)
            assert getattr(found.settings, spec.name) == spec.default
            assert found.source_of(spec.name).where.endswith(f"config.toml: {spec.name}")
            assert not found.warnings


def test_all_of_it_uncommented_is_a_configuration_with_the_examples(tmp_path):
    found = loaded(tmp_path, SETTING.sub("", TEXT))
    for spec in PLAIN:
        assert getattr(found.settings, spec.name) == spec.default
    assert [node.name for node in found.settings.nodes] == ["ollama"]
    assert list(found.settings.models) == ["some-model"]
    assert not found.warnings


def test_every_field_of_a_table_is_in_its_example_and_may_stand_alone(tmp_path, subtests):
    for spec in TABLES:
        (block,) = re.findall(rf"^(#\[+{spec.name}[\].](?:.+\n)+)", TEXT, re.MULTILINE)
        head, *rest = block.splitlines()
        fields = {line[1:].split(" = ")[0]: line for line in rest if re.match(r"#\w", line)}
        assert list(fields) == [column.name for column in columns(spec.form.row)]
        needed = [fields[column.name][1:] for column in columns(spec.form.row) if column.required]
        for name, line in fields.items():
            kept = [one for one in needed if not one.startswith(f"{name} =")]
            with subtests.test(f"{spec.name}.{name}"):
                loaded(tmp_path, "\n".join([head[1:], *kept, line[1:]]))


def test_prose_fits_into_a_terminal():
    settings = {line for line in TEXT.splitlines() if SETTING.match(line)}
    assert all(len(line) <= SAMPLE_COLUMNS for line in TEXT.splitlines() if line not in settings)
    assert all(line == "#" or line.startswith("# ") for line in set(TEXT.splitlines()) - settings - {""})
