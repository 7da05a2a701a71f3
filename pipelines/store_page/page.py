"""The page: a card for each of the newest trainings, then tables that link to everything else."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from ce_model.network_config import ALEXNET, INPAINTING, NetworkConfig, describe_training
from pipelines import html_page, storage
from pipelines.data.source_names import source_name
from pipelines.html_page import Link
from pipelines.store_page.find import Contents, Curve, Measured, Training

CARDS = 30  # the others are lines of a table
WITHOUT = {  # what a training measures beside its model, as pages and tables call it
    "psnr_visible_mean": "mean colour of the image",
    "psnr_mean_fill": "mean colour of the dataset",
    "psnr_telea": "Telea",
}
KEY_LETTERS = 8
WIDTH, HEIGHT, EDGE = 320, 130, 8  # of a curve, units of its drawing
STYLE = """
.runs { display: grid; grid-template-columns: repeat(auto-fill, minmax(20em, 1fr)); gap: 1em; }
.run { border: 1px solid var(--line); border-radius: 6px; padding: .4em 1em; min-width: 0; }
.run h3 { margin: .4em 0; } .run table { font-size: 13px; } .run .scroll { margin: .4em 0; }
.strip { display: block; height: 10.6em; width: 100%; object-fit: cover; object-position: top; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg path { fill: none; stroke: var(--link); stroke-width: 2; } svg circle { fill: var(--link); }
svg line { stroke: var(--line); }
"""


def page(contents: Contents, store: str) -> str:
    """The whole page.

    Args:
        contents: of the store.
        store: its absolute URI; what lies in it is linked from where the page is.
    """
    parts = [f"<p class='note'>{html_page.text(_counts(contents))} in {html_page.text(store)}.</p>"]
    if contents.trainings:
        cards = [_card(each, contents, store) for each in contents.trainings[:CARDS]]
        parts.append(f"<h2>Trainings</h2><div class='runs'>{''.join(cards)}</div>")
    if older := contents.trainings[CARDS:]:
        rows: list[list[str | Link]] = [
            [_folder(each, contents, store), _date(each.at), _result(each), _short(each.key)]
            for each in older
        ]
        parts.append(html_page.table("earlier ones", ["training", "ended", "", "key"], rows))
    parts += _datasets(contents, store)
    for heading, found in (("Evaluations", contents.evaluations), ("Sweeps", contents.sweeps)):
        parts += _reports(heading, found, store)
    if contents.unreadable:
        broken = [[each.uri, each.reason] for each in contents.unreadable]
        parts.append("<h2>What could not be read</h2>")
        parts.append(html_page.table("", ["record", "why"], broken, "texts"))
    return html_page.document("Context encoders in this store", "".join(parts), STYLE)


def _counts(contents: Contents) -> str:
    counts = {
        "training": len(contents.trainings),
        "dataset": len(contents.datasets),
        "evaluation": len(contents.evaluations),
        "sweep": len(contents.sweeps),
    }
    return ", ".join(f"{n} {word}{'s'[: n != 1]}" for word, n in counts.items() if n) or "nothing"


def name_of(training: Training, contents: Contents) -> str:
    """`unet, free_form holes on photos, 400 steps`."""
    summary = training.summary
    if not summary:
        network = f"{training.preset}, " if training.preset else ""
        return f"{network}not finished, step {training.step:,}"
    dataset = contents.datasets.get(summary["dataset_fingerprint"])
    data = dataset.name if dataset else source_name(summary.get("source") or summary["dataset"])
    seed = f", seed {summary['seed']}" if summary.get("seed") else ""
    return f"{about(summary)} on {data}{seed}, {summary['steps']:,} steps"


def about(summary: Mapping[str, Any]) -> str:
    """Which network learned from what; what an earlier version did not note is not named."""
    return describe_training(
        summary["preset"],
        summary.get("encoder", ALEXNET),
        summary.get("pretext", INPAINTING),
        summary["strategy"],
        summary.get("target", NetworkConfig.target),
        summary.get("layers", NetworkConfig.layers),
    )


def _card(training: Training, contents: Contents, store: str) -> str:
    summary = training.summary
    parts = [f"<h3>{html_page.text(name_of(training, contents))}</h3>"]
    parts.append(
        f"<p class='note'>{html_page.text(_date(training.at))}, "
        f"{_links(training, contents, store)}</p>"
    )
    if training.has_panel:
        panel = html_page.text(href(storage.join(training.uri, "panel.png"), store))
        parts.append(
            f"<a href='{panel}'><img class='strip' loading='lazy' src='{panel}' "
            f"alt='validation images: {_columns(summary)}'></a>"
        )
    if summary:
        parts += _methods(summary)
    if len(training.curve) > 1:
        parts.append(_curve(training.curve, training.unit))
    elif training.curve and not summary:  # a finished one has it in its table
        ((step, value),) = training.curve
        so_far = f"{value:.4g} {training.unit} at step {step:,}"
        parts.append(f"<p class='note'>{html_page.text(so_far)}</p>")
    if summary.get("tracking_run_id"):
        run = f"MLflow run {summary['tracking_run_id']}"
        parts.append(f"<p class='note'>{html_page.text(run)}</p>")
    return f"<section class='run'>{''.join(parts)}</section>"


def _columns(summary: dict[str, Any]) -> str:
    is_pretext = summary.get("pretext", INPAINTING) != INPAINTING
    return "what was asked, and the answers" if is_pretext else "input, hole, output, target"


def _folder(training: Training, contents: Contents, store: str) -> Link:
    return Link(name_of(training, contents), href(f"{training.uri}/", store))


def _links(training: Training, contents: Contents, store: str) -> str:
    found = [Link(f"folder {_short(training.key)}", href(f"{training.uri}/", store))]
    if training.summary:
        dataset = contents.datasets.get(training.summary["dataset_fingerprint"])
        home = dataset.uri if dataset else str(training.summary["dataset"])
        if dataset is None or dataset.has_card:
            found.append(Link("dataset", href(storage.join(home, "card.html"), store)))
    return ", ".join(map(html_page.link, found))


def without_training(summary: Mapping[str, Any]) -> dict[str, float]:
    """PSNR of fillings that need no training, those that were measured, by what they are called."""
    measured = summary["validation"]
    names = {**WITHOUT, "psnr_untrained": untrained_name(summary)}
    return {what: measured[name] for name, what in names.items() if name in measured}


def untrained_name(summary: Mapping[str, Any]) -> str:
    """What the fillings of a network are called before its training: `unet` adds nothing yet."""
    is_smooth = summary["preset"] == "unet" and summary.get("start", "smooth") == "smooth"
    return "smooth start" if is_smooth else "untrained network"


def looks(measured: Mapping[str, float]) -> str:
    """How fillings look, beside the truth's."""
    if "ssim_hole" not in measured:
        return "not measured by the version that trained this"
    return (
        f"SSIM {measured['ssim_hole']:.3f}, sharpness {measured['sharpness']:.2f} and seam "
        f"{measured['seam']:.2f} of the truth's"
    )


def _methods(summary: Mapping[str, Any]) -> Iterator[str]:
    """Fillings beside what needs no training, the best first; or what else was learned."""
    measured = summary["validation"]
    if "accuracy" in measured:
        cells = [
            ["this model", f"{measured['accuracy']:.1%}"],
            ["by chance", f"{measured['accuracy_chance']:.1%}"],
        ]
        yield html_page.table("right answers, validation", ["", ""], cells)
    elif "psnr_hole" in measured:
        others = without_training(summary)
        values = {"this model": measured["psnr_hole"], **others}
        names = sorted(values, key=lambda name: values[name], reverse=True)
        cells = [[name, f"{values[name]:.2f} dB"] for name in names]
        mine = {(names.index("this model"), column) for column in (0, 1)}
        yield html_page.table("PSNR of the hole, validation", ["", ""], cells, best=mine)
        yield f"<p class='note'>{html_page.text(f'This model: {looks(measured)}.')}</p>"
    elif "target_error" in measured and "target_error_mean" in measured:
        error, mean = measured["target_error"], measured["target_error_mean"]
        cells = [["this model", f"{error:.4f}"], ["mean of all cells", f"{mean:.4f}"]]
        yield html_page.table("error of the target, validation", ["", ""], cells)


def _curve(curve: Curve, unit: str) -> str:
    """A line over the steps, each measurement a point."""
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    low, high = min(values), max(values)
    first, last = min(steps), max(steps)

    def place(step: int, value: float) -> str:
        along = (step - first) / (last - first) if last > first else 0.5
        up = (value - low) / (high - low) if high > low else 0.5
        x = EDGE + along * (WIDTH - 2 * EDGE)
        y = HEIGHT - 24 - up * (HEIGHT - 46)
        return f"{x:.1f} {y:.1f}"

    points = [place(step, value) for step, value in curve]
    dots = "".join("<circle r='2.5' cx='{}' cy='{}'/>".format(*each.split()) for each in points)
    title = f"validation, {unit}: {values[-1]:.4g} at step {last:,}"
    shown = f"{low:.4g} to {high:.4g} {unit}"
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{html_page.text(title)}'>"
        f"<line x1='{EDGE}' x2='{WIDTH - EDGE}' y1='{HEIGHT - 18}' y2='{HEIGHT - 18}'/>"
        f"<path d='M {' L '.join(points)}'/>{dots}"
        f"<text x='{EDGE}' y='12'>{html_page.text(shown)}</text>"
        f"<text x='{EDGE}' y='{HEIGHT - 4}'>step {first:,}</text>"
        f"<text x='{WIDTH - EDGE}' y='{HEIGHT - 4}' text-anchor='end'>{last:,}</text></svg>"
    )


def _result(training: Training) -> str:
    measured = training.summary.get("validation", {})
    if "psnr_hole" in measured:
        return f"{measured['psnr_hole']:.2f} dB"
    if "accuracy" in measured:
        return f"{measured['accuracy']:.1%} right"
    return f"error {measured['target_error']:.4f}" if "target_error" in measured else ""


def _datasets(contents: Contents, store: str) -> Iterator[str]:
    if not contents.datasets:
        return
    newest = sorted(contents.datasets.values(), key=lambda each: each.at, reverse=True)
    rows = [
        [
            Link(each.name, href(storage.join(each.uri, "card.html"), store))
            if each.has_card
            else each.name,
            _date(each.at),
            f"{each.images:,}",
            _short(each.key),
        ]
        for each in newest
    ]
    yield "<h2>Datasets</h2>"
    yield html_page.table("", ["card", "prepared", "images", "key"], rows)


def _reports(heading: str, found: list[Measured], store: str) -> Iterator[str]:
    if not found:
        return
    rows: list[list[str | Link]] = [
        [Link(each.title, href(each.uri, store)), _date(each.at), each.text] for each in found
    ]
    yield f"<h2>{heading}</h2>"
    yield html_page.table("", ["report", "made", "of"], rows, "texts")


def href(uri: str, store: str) -> str:
    """Where a page of the store finds something: relative where it lies in the store."""
    if uri == store or uri.startswith(f"{store}/"):
        return quote(uri[len(store) + 1 :]) or "."
    return storage.local_path(uri).as_uri() if storage.is_local(uri) else quote(uri, safe=":/")


def _short(key: str) -> str:
    return key[:KEY_LETTERS]


def _date(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
