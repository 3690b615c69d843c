"""What `meld download` fetched and unpacked."""

from shlex import quote

from console.printing import print_json
from pipeline.download.download import DownloadReport


def show_download(report: DownloadReport, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    for split, clips in report.clips.items():
        how = "used in place" if split in report.linked else ""
        how = "already complete" if split in report.there else how
        print(f"{split}: {clips:,} clips{f', {how}' if how else ''}")
    if report.found is not None:
        found = report.found
        print(
            f"{found.corrected} corrected cuts of test clips; dropped: {found.apple_double:,} "
            f"AppleDouble files, {found.others:,} others"
            + (f" such as {found.first_other!r}" if found.others else "")
        )
    if report.sha256:
        print(f"from {report.origin}, SHA-256 {report.sha256}")
    checked = quote(str(report.out))
    print(f"{report.out}: {report.seconds:.0f} s; next: meld doctor --data {checked}")
