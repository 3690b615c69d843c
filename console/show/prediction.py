"""Predictions of media files, for the terminal (`meld predict`)."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from console.printing import print_json, print_rich, say
from console.show.recipe import print_random
from fusion.inference.media import PredictedUtterance
from fusion.inference.prediction import HeadPrediction
from fusion.inference.timeline import NOTICE, Shares, Timeline
from fusion.prediction.formats import address_media, write_as
from fusion.prediction.one_file import FileResult
from fusion.prediction.predict_files import PredictConfig, PredictReport
from fusion.prediction.timeline_files import brief_clock, clock
from pipeline.system.one_line import one_line

# Colour by sentiment, as on the page; the label is always printed as well.
_STYLES = {"positive": "green", "negative": "red", "neutral": ""}
_MOST_ROWS = 200


def show_predictions(report: PredictReport, config: PredictConfig, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    if not config.writes:
        for result in report.files:
            if result.timeline is not None:
                media_url = address_media(result.path, folder=None, embedded=config.embed)
                print(write_as(config.formats[0], result.timeline, media_url=media_url), end="")
        return
    for result in report.files:
        if result.timeline is not None:
            print_rich(render_timeline(result.timeline))
        for path in result.written:
            print(f"written: {one_line(str(path))}")
    timelines = [result.timeline for result in report.files if result.timeline is not None]
    if timelines:
        print_random(timelines[0].model.random_weights)
        print(NOTICE)


def tell_failures(report: PredictReport) -> None:
    """Prints notes, then files without a timeline, on stderr, because stdout may be piped."""
    for result in report.files:
        name = one_line(str(result.path))
        if result.error is None and result.timeline is not None:
            for note in result.timeline.segmentation.notes:
                say(f"meld: {name}: {one_line(note)}")
            _tell_of_utterances(name, result)
    errors = [result.error for result in report.files if result.error is not None]
    for error in errors:
        say(f"meld: {one_line(str(error))}")
    if errors and len(report.files) > 1:
        say(f"meld: {len(errors)} of {len(report.files)} files could not be predicted")


def _tell_of_utterances(name: str, result: FileResult) -> None:
    timeline = result.timeline
    if timeline is None or not timeline.num_failed:
        return
    first = next(each for each in timeline.utterances if each.prediction is None)
    say(
        f"meld: {name}: {timeline.num_failed} of {len(timeline.utterances)} utterances have no "
        f"prediction (first: {first.id}, {one_line(str(first.error))})"
    )


def render_timeline(timeline: Timeline) -> RenderableType:
    """A table of up to 200 utterances, and the summary."""
    if not timeline.utterances:
        return Text(f"{_title(timeline)}: no utterance")
    table = Table(title=Text(_title(timeline), style="table.title"), title_justify="left")
    table.add_column("at", justify="right", no_wrap=True)
    named = any(each.spoken.speaker for each in timeline.utterances)
    for name in (*(["speaker"] if named else []), "emotion", "sentiment", "by"):
        table.add_column(name, no_wrap=True)
    table.add_column("words", ratio=1)
    for each in timeline.utterances[:_MOST_ROWS]:
        table.add_row(*_row(each, named))
    rows_left = len(timeline.utterances) - _MOST_ROWS
    notes = [Text(f"and {rows_left} more in the written files")] if rows_left > 0 else []
    return Group(table, *notes, _summary(timeline))


def _title(timeline: Timeline) -> str:
    source = timeline.segmentation.source
    words = f"words from {timeline.segmentation.file}" if timeline.segmentation.file else source
    return (
        f"{one_line(timeline.media.file)}, {clock(timeline.media.duration_ms)}: "
        f"{timeline.model.name} ({', '.join(timeline.model.modalities)}), {one_line(words)}"
    )


def _row(each: PredictedUtterance, named: bool) -> list[Text]:
    cells = [brief_clock(each.spoken.span.start_ms)]
    cells += [each.spoken.speaker or ""] if named else []
    if each.prediction is None:
        cells += ["-", "-", "-", each.error or ""]
        return [Text(one_line(cell)) for cell in cells]
    emotion, sentiment = each.prediction.emotion, each.prediction.sentiment
    most = max(each.prediction.parts, key=lambda part: part.support, default=None)
    mark = " (divided)" if each.prediction.is_divided else ""
    cells += [_told(emotion), _told(sentiment)]
    cells += [f"{most.modality}{mark}" if most else "-", each.spoken.text]
    style = _STYLES[sentiment.label]
    return [Text(one_line(cell), style=style) for cell in cells]


def _told(head: HeadPrediction) -> str:
    return f"{head.label} {head.confidence:.2f}"


def _summary(timeline: Timeline) -> RenderableType:
    summary = timeline.summary
    lines = [f"of {summary.shares.spoken_ms / 1000:.1f} s spoken: {_shares(summary.shares)}"]
    lines += [f"{one_line(name)}: {_shares(shares)}" for name, shares in summary.speakers.items()]
    by_id = {each.id: each for each in timeline.utterances}
    moments = [
        f"{brief_clock(each.spoken.span.start_ms)} {each.prediction.emotion.label}"
        for each in map(by_id.__getitem__, summary.moments)
        if each.prediction is not None
    ]
    if moments:
        lines.append(f"strongest: {', '.join(moments)}")
    return Text("\n".join(lines))


def _shares(shares: Shares) -> str:
    every = {**shares.sentiment, **{k: v for k, v in shares.emotion.items() if k != "neutral"}}
    return ", ".join(f"{name} {share:.0%}" for name, share in every.items() if share >= 0.005)
