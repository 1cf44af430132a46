"""How close re-encoded pictures are to what went into the encoder."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av import Packet, VideoFrame


class Quality:
    """Decodes what the encoder puts out and compares its luma with what went in, over all pictures.

    Arguments:
        codec: FFmpeg's name of the decoder, such as "h264".
    """

    def __init__(self, codec: str) -> None:
        import av

        decoder = av.CodecContext.create(codec, "r")
        assert isinstance(decoder, av.VideoCodecContext)
        self._decoder = decoder
        self._decoder.thread_count = 1
        self._sent: deque[np.ndarray] = deque()
        self._squares = self._pixels = 0

    def sent(self, picture: VideoFrame) -> None:
        """Note a yuv420p picture that goes into the encoder."""
        self._sent.append(picture.to_ndarray()[: picture.height])

    def received(self, packet: Packet | None) -> None:
        """Decode a packet that came out, or with None what the decoder still holds, and compare."""
        if packet is not None and not self._decoder.is_open:
            self._decoder.extradata = packet.stream.codec_context.extradata
        for frame in self._decoder.decode(packet):
            luma = frame.to_ndarray()[: frame.height]
            error = luma.astype(np.int32) - self._sent.popleft()
            self._squares += int(np.square(error).sum(dtype=np.int64))
            self._pixels += luma.size

    def psnr_db(self) -> float:
        """Luma PSNR over all pictures, dB; inf where none differs."""
        assert not self._sent, f"{len(self._sent)} pictures never came back"
        return 10 * math.log10(255**2 * self._pixels / self._squares) if self._squares else math.inf
