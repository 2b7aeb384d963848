"""Pages of the site that are written elsewhere: README, CONTRIBUTING, CHANGELOG, and the notebooks as Markdown."""

import base64
import json
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
TOP = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config) -> Files:
    """Called by mkdocs when it has listed docs/."""
    for name, page in TOP.items():
        text = (ROOT / name).read_text().replace("](docs/", "](")
        for other, there in TOP.items():
            text = text.replace(f"]({other})", f"]({there})")
        files.append(File.generated(config, page, content=text))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        files.remove(files.get_file_from_path(f"notebooks/{notebook.name}"))
        pictures: dict[str, bytes] = {}
        text = markdown(json.loads(notebook.read_text()), notebook.stem, pictures)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Called for each page: links to notebooks lead to their pages."""
    return markdown.replace(".ipynb)", ".md)")


def markdown(notebook: dict, name: str, pictures: dict[str, bytes]) -> str:
    """The cells of a notebook; ``pictures`` gets the files that they show."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                file = f"{name}-{len(pictures)}.png"
                pictures[file] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What the cell draws]({file})")
            elif text := "".join(output.get("text", data.get("text/plain", []))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
