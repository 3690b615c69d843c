"""Versions of FFmpeg's libraries, which decide pixels and samples."""


def ffmpeg_versions() -> dict[str, str]:
    """{"libavcodec": "62.28.102", ...}, of the libraries that PyAV has loaded."""
    import av  # imported here because it takes half the time of `meld --version`

    return {
        name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())
    }
