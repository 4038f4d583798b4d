"""Hooks of mkdocs: pages made of the code, and files of the repository that pages link to.

The reference of commands and keys comes from the configs' schema, the Python API from docstrings, the start page from
README.md. Links that leave docs/ lead to copies of the files inside the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import bertray
from bertray import config as configs
from bertray.cli import SUMMARIES
from bertray.commands.overview import EXAMPLES, GROUPS

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md"} | {name: name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")}
"""Pages beside docs/, and their places in the site."""
COPIED = ("LICENSE", "constraints.txt", "requirements*.lock", "cluster.yaml", "deploy/**/*", "jobs/configs/*.yaml")
FOLDERS = {"jobs/configs": "configs.md"}
"""Folders that pages link to, and the page that shows their files."""
VERBS = [verb for of_group in GROUPS.values() for verb in of_group]
KEYS_ELSEWHERE = {
    "plan": "Its keys are those of [`train`](train.md), where `data` or `training` is one of them, else of "
    "[`score`](score.md).",
    "config": "`show VERB` takes the keys of that command and prints all of them with their values, as `-c` reads "
    "them. `schema VERB` prints the JSON schema of its keys, for editors.",
}
"""Commands without keys of their own."""
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def on_config(config: Any) -> Any:
    """Fill the list of commands in the navigation, group by group."""
    commands = [{"Overview": "reference/commands.md"}]
    commands += [{verb: f"reference/{verb}.md"} for verb in VERBS]
    for section in config.nav:
        for item in section.get("Reference", []):
            if "Commands" in item:
                item["Commands"] = commands
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add generated pages and copied files."""
    made = {
        "configs.md": _configs_page(),
        "reference/api.md": _api_page(),
        "reference/commands.md": _commands_page(),
        **{f"reference/{verb}.md": _command_page(verb) for verb in VERBS},
        **{place: (ROOT / name).read_text(encoding="utf-8") for name, place in PAGES.items()},
    }
    found = [path for pattern in COPIED for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    copied = [path for path in found if "__pycache__" not in path.parts]  # tests import the DAG
    made |= {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in copied}
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links that leave docs/ lead to their copies; code is left as it is."""
    place = page.file.src_uri
    source = next((name for name, target in PAGES.items() if target == place), f"docs/{place}")

    def linked(text: str) -> str:
        return LINK.sub(lambda found: _link(found[1], source, place, files), text)

    return "".join(part if part.startswith("```") else linked(part) for part in FENCE.split(markdown))


def _link(link: str, source: str, place: str, files: Files) -> str:
    """A link of a file of the repository as a link of its page in the site."""
    path, hash_, anchor = link.partition("#")
    if re.match(r"[a-z]+:", link) or not path or place.startswith("reference/"):
        return link
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    inside = FOLDERS.get(target) or PAGES.get(target) or target.removeprefix("docs/")
    if files.get_file_from_path(inside) is None:
        return link
    return posixpath.relpath(inside, posixpath.dirname(place) or ".") + hash_ + anchor


def _commands_page() -> str:
    lines = [
        "# Commands",
        "",
        "`bertray COMMAND -c FILE.yaml key.sub=value …`: every key may stand in a file or be typed.",
        "",
    ]
    for title, verbs in GROUPS.items():
        lines += [f"## {title}", "", "| command | |", "|---|---|"]
        lines += [f"| [`{verb}`]({verb}.md) | {SUMMARIES[verb]} |" for verb in verbs]
        lines += [""]
    return "\n".join(lines)


def _command_page(verb: str) -> str:
    """Examples and keys of a command, by section."""
    lines = [f"# {verb}", "", SUMMARIES[verb], "", "```console"]
    lines += [f"$ bertray {example}" for example in EXAMPLES[verb]]
    lines += ["```", ""]
    if verb in KEYS_ELSEWHERE:
        return "\n".join([*lines, KEYS_ELSEWHERE[verb], ""])
    sections: dict[str, list[tuple[str, str, str]]] = {"": []}
    for key, default, description in configs.key_help(configs.CONFIGS[verb]):
        sections.setdefault(key.rpartition(".")[0], []).append((key, default, description))
    for section, rows in sections.items():
        lines += [f"## {section or 'Keys'}", ""] if rows else []
        for key, default, description in rows:
            values = configs.choices(configs.CONFIGS[verb], key)
            one_of = f" One of {', '.join(f'`{value}`' for value in values)}." if len(values) > 1 else ""
            lines += [f"`{key}` = `{default}`", f":   {_escaped(description)}.{one_of}", ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """A help text as Markdown: placeholders in angle brackets and globs are no markup."""
    return re.sub(r"(`[^`]*`)|([<*_\[\]|])", lambda m: m[1] or f"\\{m[2]}", text)


def _api_page() -> str:
    """Public functions, classes and errors, by their docstrings."""
    classes = ("Classifier", "Embedder")
    public = [name for name in bertray.__all__ if name not in ("__version__", "errors")]
    blocks = {
        "Classes": [f"bertray.api.{name.lower()}.{name}" for name in classes],
        "Functions": [f"bertray.api.verbs.{name}" for name in public if name.islower()],
        "Errors": [f"bertray.errors.{name}" for name in public if not name.islower() and name not in classes],
    }
    lines = ["# Python API", "", "How to use it: [Python](../python.md). Keys: [Commands](commands.md).", ""]
    for title, names in blocks.items():
        lines += [f"## {title}", "", *(f"::: {name}\n" for name in names)]
    return "\n".join(lines)


def _configs_page() -> str:
    """The example configs, each with its comments."""
    lines = ["# Example configs", ""]
    for path in sorted((ROOT / "jobs" / "configs").glob("*.yaml")):
        lines += [f"## {path.name}", "", "```yaml", path.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)
