"""What the pages say of the repository is so: targets of make, links, paths, and the commands of the commit hooks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
IN_THE_REPOSITORY = re.compile(r"(?:bertray|docs|jobs|tests)/[\w./-]+")

pages = pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])


def commands_of(page: Path) -> list[str]:
    """Lines of the code blocks of a page and its code in the text."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(FENCE.findall(text)).splitlines()
    return [line.removeprefix("$ ").strip() for line in [*blocks, *INLINE.findall(FENCE.sub("", text))]]


def targets_of_make() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, flags=re.MULTILINE))


def targets_named(page: Path) -> set[str]:
    """Targets of make in the commands of a page."""
    calls = [shlex.split(command, comments=True) for command in commands_of(page) if re.match(r"make\b", command)]
    return {word for _, *words in calls for word in words if "=" not in word and not word.startswith("-")}


def recipe_of(target: str) -> list[str]:
    """Command lines that a target runs, of the targets it needs first; the folder of the environment written out."""
    rule = re.search(rf"^{target}:(.*)\n((?:\t.*\n)*)", MAKEFILE, flags=re.MULTILINE)
    assert rule, target
    needed = [line for name in rule[1].split() if not name.startswith("install") for line in recipe_of(name)]
    return needed + [line.strip().replace("$(BIN)", ".venv/bin") for line in rule[2].splitlines()]


def anchors_of(page: Path) -> set[str]:
    """Names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_targets_of_make_that_a_page_names_exist(page: Path):
    assert targets_named(page) - targets_of_make() == set()


def test_every_target_of_make_is_documented_for_contributors():
    assert targets_named(ROOT / "CONTRIBUTING.md") == targets_of_make()


def test_every_target_of_make_is_phony():
    assert set(re.findall(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.MULTILINE)[0].split()) == targets_of_make()


@pages
def test_links_inside_the_repository_lead_somewhere(page: Path):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            lost.append(link)
    assert lost == []


@pages
def test_paths_that_a_page_names_exist(page: Path):
    named = INLINE.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    paths = {name.partition("::")[0] for name in named}
    assert {path for path in paths if IN_THE_REPOSITORY.fullmatch(path) and not (ROOT / path).exists()} == set()


@pages
def test_names_that_a_page_gives_of_a_module_are_in_it(page: Path):
    """`bertray/schema.py::Reason` names something that the module defines."""
    named = re.findall(r"`(bertray/[\w./]+)::(\w+)`", page.read_text(encoding="utf-8"))
    missing = []
    for path, name in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        if not re.search(rf"^(?:class |def )?{name}\b", source, flags=re.MULTILINE):
            missing.append(f"{path}::{name}")
    assert missing == []


def test_every_decision_stands_in_the_index():
    folder = ROOT / "docs" / "decisions"
    index = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert index == sorted(path.name for path in folder.glob("[0-9]*.md"))


def test_the_commit_hooks_run_what_make_lint_runs():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repo["repo"] == "local"
    assert [hook["entry"] for hook in repo["hooks"]] == recipe_of("lint")
    for hook in repo["hooks"]:
        # The whole tree with the tools of the environment, whatever the commit holds.
        assert (hook["language"], hook["pass_filenames"], hook["always_run"]) == ("system", False, True)


def test_every_page_stands_in_the_navigation_of_the_site():
    """`make docs` ends with an error where one does not, after the rest of CI."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = set(re.findall(r"[\w/-]+\.md", navigation))
    made = {"index.md", "configs.md", "reference/api.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"}
    assert named - made == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}


def test_arguments_of_public_functions_are_described_one_by_one():
    """The site shows each with its type; a description of two at once is a warning there, and no argument."""
    for path in ("verbs", "classifier", "embedder"):
        text = (ROOT / f"bertray/api/{path}.py").read_text(encoding="utf-8")
        assert re.findall(r"^ {8}[a-z_]+(?:, [a-z_]+)+: .*$", text, flags=re.MULTILINE) == []


@pages
def test_a_shell_takes_each_setting_of_a_command_as_one_word(page: Path):
    """`by=[product, week]` without quotes is two words, and a glob."""
    blocks = re.findall(r"^```(?:console|bash)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if " bertray " in line]
    split = []
    for line in lines:
        words = shlex.split(line, comments=True)
        split += [word for word in words if any(word.count(a) != word.count(b) for a, b in ("[]", "{}"))]
    assert split == []
