"""The pages are true: links lead somewhere, code runs or compiles, names exist, tables agree with the code."""

import ast
import importlib
import importlib.util
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import typer
from denoisers import table as classes

from festina import Plan
from festina.cli.main import app
from festina.report.look import LOOKS
from festina.search.settings import SearchSettings
from festina.sites import component_sites, rows
from festina.zoo import components, grammar
from festina.zoo.scenes import build_transformer
from festina.zoo.train import TrainSettings

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page, without the indent of the list they may stand in."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [
        "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
        for indent, tongue, text in found
        if tongue == language
    ]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(page: Path, heading: str) -> dict[str, list[str]]:
    """Rows of the first table under a heading: the other cells by the first one."""
    section = re.split(rf"^#+ {re.escape(heading)}$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    rows = re.search(r"(^\|.*\n)+", re.split(r"^#", section, flags=re.MULTILINE)[0], re.MULTILINE)
    lines = rows.group().splitlines()[2:] if rows else []
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


def test_every_page_is_looked_at():
    names = {page.name for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "concepts.md", "command_line.md", "fora.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        where = (page.parent / path).resolve() if path else page
        assert where.exists(), target
        assert where.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(where), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles_and_imports_what_there_is(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module}.{name.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_and_paths_in_the_text_exist(page):
    for word in re.findall(r"`([^`\n]+)`", prose(page)):
        if re.fullmatch(r"festina(\.\w+)+(\(\))?", word):
            assert resolve(word.removesuffix("()")), word
        if re.fullmatch(r"(src|tests|examples|docs)/[\w/.]+", word):
            assert (ROOT / word).exists(), word


def resolve(name: str) -> bool:
    """Whether a dotted name is a module or something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_the_plan_of_the_page_is_what_its_code_writes():
    page = ROOT / "docs" / "plan_format.md"
    (text,) = blocks(page, "json")
    assert Plan.from_json(text).to_json() == text
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(block, names)
    assert names["text"] == text


def commands(app: typer.Typer) -> dict[str, object]:
    """Every command by its full name."""
    found = {}

    def collect(command, name):
        for child, sub in getattr(command, "commands", {}).items():
            collect(sub, f"{name} {child}")
        if not hasattr(command, "commands"):
            found[name] = command

    collect(typer.main.get_command(app), "festina")
    return found


def shown_default(option) -> str:
    if option.required:
        return "required"
    if option.is_flag:
        return "on" if option.default else "off"
    value = option.default
    return "none" if value is None else str(getattr(value, "value", value))


@pytest.mark.parametrize("name", sorted(commands(app)))
def test_the_page_of_the_command_line_names_every_option(name):
    page = ROOT / "docs" / "command_line.md"
    options = [parameter for parameter in commands(app)[name].params if parameter.param_type_name == "option"]
    wanted = {
        ", ".join(f"`{word}`" for word in sorted(option.opts, key=len, reverse=True)): shown_default(option)
        for option in options
        if "--help" not in option.opts
    }
    assert {option: default for option, (default, _) in table(page, name).items()} == wanted


def test_the_page_of_the_command_line_has_no_other_command():
    headings = re.findall(r"^## (.+)$", prose(ROOT / "docs" / "command_line.md"), re.MULTILINE)
    assert sorted(headings) == sorted(commands(app))


def test_settings_in_the_pages_are_the_defaults():
    training = table(ROOT / "docs" / "scenes.md", "Training")
    assert set(training) >= {"`vae`", "`denoiser`"}
    text = (ROOT / "docs" / "scenes.md").read_text(encoding="utf-8")
    written = dict(re.findall(r"^\| `(\w+)` \| ([\w.]+) \|$", text, re.MULTILINE))
    assert written == {field.name: str(field.default) for field in fields(TrainSettings)}
    shipped = json.loads((ROOT / "src/festina/zoo/weights/scenes/settings.json").read_text(encoding="utf-8"))
    other = {name: value for name, value in shipped.items() if str(value) != written[name]}
    options = " ".join(
        f"--{name.replace('_', '-')}{'' if value is True else f' {value}'}" for name, value in other.items()
    )
    assert f"trained with `{options}`" in text
    searching = table(ROOT / "docs" / "search.md", "Settings")
    defaults = {field.name: field.default for field in fields(SearchSettings)} | {"mutation": "`WORKING_MUTATION`"}
    assert {name.strip("`"): here for name, (here, _) in searching.items()} == {
        name: str(value) for name, value in defaults.items()
    }


def test_kinds_of_points_are_explained_by_their_labels():
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^- \*\*([^*]+)\*\*:", text, re.MULTILINE)) == {look.label for look in LOOKS.values()}


def test_sizes_of_scenes():
    text = (ROOT / "docs" / "scenes.md").read_text(encoding="utf-8")

    def millions(module) -> float:
        return sum(parameter.numel() for parameter in module.parameters()) / 1e6

    encoder = components.build_text_encoder(len(components.build_tokenizer()))
    assert f"{millions(build_transformer()):.1f} million parameters" in text
    assert f"{millions(components.build_vae()):.2f} million parameters" in text
    assert f"{millions(encoder):.2f} million parameters" in text
    for name in ("SIZES", "COLOURS", "SHAPES", "RELATIONS", "BACKGROUNDS"):
        words = " | ".join(getattr(grammar, name))
        assert f"{name.lower().rstrip('s')} = {words}" in re.sub(r" +", " ", text)


class TestAddingAModel:
    """The worked example of docs/adding_a_model.md, on the model of examples/own_model.py."""

    @pytest.fixture(autouse=True)
    def own_rows(self, monkeypatch):
        monkeypatch.setattr(rows, "_ROWS", dict(rows._ROWS))

    def test_the_row_and_the_checks_of_the_page(self, capsys):
        spec = importlib.util.spec_from_file_location("own_model", ROOT / "examples" / "own_model.py")
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        torch.manual_seed(0)
        denoiser = example.MyDenoiser().eval()
        row, *checks = blocks(ROOT / "docs" / "adding_a_model.md", "python")
        exec(row, {})
        assert [site.name for site in component_sites(denoiser)][:2] == ["layers.0.mix", "layers.0.feed"]
        names = {"denoiser": denoiser, "inputs": (torch.randn(2, 16, 32), torch.ones(1))}
        for check in checks:
            exec(check, names)
        assert "0.0% of the MACs cannot be served" in capsys.readouterr().out


def test_the_table_of_all_classes_is_what_its_command_prints():
    """To renew it, paste what `python tests/denoisers/table.py` prints between the marks of docs/sites.md."""
    text = (ROOT / "docs" / "sites.md").read_text(encoding="utf-8")
    for mark, made in (("classes", classes.table()), ("left out", classes.left_out())):
        found = text.partition(f"<!-- {mark} -->\n")[2].partition(f"<!-- end of {mark} -->")[0]
        assert found.strip() == made.strip()
