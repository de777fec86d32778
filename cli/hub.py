"""`hotslot hub …`: publish revisions into a folder hub, and see what is in it. Works without a server."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cli import hub_serve
from cli.console import BAD, DIM, GOOD, err, out, print_text, short, size, text
from cli.problems import WronglyUsed
from cli.publishing import publish
from cli.settings import read_settings
from cli.updating import hub_folder
from common.bundle import source_digest
from common.published import ManifestBroken, is_revision_name, read_manifest
from common.settings import settings_path

app = typer.Typer(no_args_is_help=True)
app.command(epilog=hub_serve.EXAMPLE)(hub_serve.serve)

Hub = Annotated[
    Path | None,
    typer.Option("--hub", metavar="DIR", help="The hub. Default: what hotslot.toml says.", show_default=False),
]


@app.command(epilog="Example:  hotslot hub add examples/shapes/v1.0.0 v1.0.0")
def add(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="A model as it was downloaded.", exists=True, file_okay=False)
    ],
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="Its name, for example v1.2.0.")],
    *,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME", help="Default: the only one.", show_default=False)
    ] = "",
    hub: Hub = None,
) -> None:
    """Publish a model folder as a revision: copied, listed, and visible whole or not at all."""
    name = model or _only_model()
    with err.status(text(f"copying {source}")):
        done = publish(source, hub_folder(hub, name), name, revision)
    if not done.is_new:
        print_text(f"{name} {revision} is published already; nothing to do")
        return
    print_text(("published ", GOOD), f"{name} {revision}: {len(done.files)} files, {size(done.size)}")
    print_text(("the updater sees it at its next look; `hotslot updates status` follows it", DIM))


@app.command("list", epilog="Example:  hotslot hub list")
def list_(*, hub: Hub = None) -> None:
    """List the revisions of a folder hub."""
    folder = hub_folder(hub)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for heading in ("model", "revision", "files", "size", "listing"):
        table.add_column(heading, overflow="fold")
    for path in _revisions(folder):
        try:
            files = read_manifest(path)
        except FileNotFoundError:
            continue
        except (OSError, ManifestBroken) as error:
            table.add_row(text(path.parent.name), text(path.name), "", "", text((str(error), BAD)))
            continue
        total = size(sum(file.size for file in files))
        table.add_row(*map(text, (path.parent.name, path.name, str(len(files)), total, short(source_digest(files)))))
    if table.row_count:
        out.print(table)
    else:
        print_text(f"no revision in {folder} yet; publish one with `hotslot hub add DIR REVISION`")


def _revisions(hub: Path) -> list[Path]:
    models = [path for path in hub.iterdir() if path.is_dir()] if hub.is_dir() else []
    return sorted(path for model in models for path in model.iterdir() if is_revision_name(path.name))


def _only_model() -> str:
    names = [model.name for model in read_settings().models] if settings_path().is_file() else []
    if len(names) != 1:
        raise WronglyUsed(f"name the model with --model ({', '.join(names) or 'no settings file names one'})")
    return names[0]
