"""`festina front`: look at a finished search and take a plan from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from festina.errors import FestinaError
from festina.plan import Measurement


def front_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a search (or a page.json).")],
    speedup: Annotated[float | None, typer.Option(help="At least this many times faster, in seconds.", min=0)] = None,
    fewer_macs: Annotated[float | None, typer.Option(help="At least this many times fewer MACs.", min=0)] = None,
    min_reward: Annotated[float | None, typer.Option(help="At least this held-out reward.")] = None,
    max_megabytes: Annotated[float | None, typer.Option(help="At most this many MB held per picture.", min=0)] = None,
    save: Annotated[Path | None, typer.Option(help="Save the best plan within the limits here.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
) -> None:
    """Show the front of a search as a table, and pick the best plan within limits."""
    from festina.report import FrontPage, markdown_table, rich_table, write_page
    from festina.report.choice import best_point

    path = folder / "page.json" if folder.is_dir() else folder
    if not path.is_file():
        raise FestinaError(f"no finished search in {folder}: there is no page.json. Run `festina search` to its end.")
    page = FrontPage.load(path)
    if folder.is_dir():
        write_page(page, folder / "index.html")
    if markdown:
        print(markdown_table(page.points))
    else:
        Console().print(rich_table(page.points, title=page.title))
        print(f"{page.settings}; {page.hardware}")
    limits = (speedup, fewer_macs, min_reward, max_megabytes)
    if save is None and all(limit is None for limit in limits):
        return
    held = None if max_megabytes is None else int(max_megabytes * 1e6)
    best = best_point(page, speedup, fewer_macs, min_reward, held)
    uncached = next(point for point in page.points if point.kind == "uncached")
    print(
        f"best within the limits: {best.name}, {best.seconds_ratio or 0:.2f} times faster, "
        f"{uncached.macs / best.macs:.2f} times fewer MACs, reward {best.reward:.4f} (uncached {uncached.reward:.4f})"
    )
    if save is not None:
        assert best.plan is not None
        import dataclasses

        conditions = f"{page.settings}; {page.hardware}"
        figures = (
            Measurement("reward", best.reward, "", conditions),
            Measurement("reward uncached", uncached.reward, "", conditions),
            Measurement("seconds ratio to uncached", best.seconds_ratio or 0.0, "", conditions),
            Measurement("MACs ratio to uncached", uncached.macs / best.macs, "", conditions),
        )
        dataclasses.replace(best.plan, measured=figures).save(save)
        print(f"saved {save}")
