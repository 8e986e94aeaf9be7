"""Search inside an asyncio program, whose event loop goes on meanwhile.

    python examples/asyncio_search.py bundle/ shop.gallery "in red"

Asks with every image of the gallery, up to 200 at once, while a ticker notes how late its latest tick came.
"""

import asyncio
import sys
import time

import dra_runtime as dra

AT_ONCE = 200


async def ticker() -> None:
    """Tick every 5 ms until cancelled, then say how late the latest tick was."""
    latest, ticks = 0.0, 0
    try:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.005)
            latest, ticks = max(latest, time.perf_counter() - start - 0.005), ticks + 1
    finally:
        print(f"the loop ticked {ticks} times meanwhile; the latest tick was {1000 * latest:.1f} ms late")


async def main(bundle: str, gallery_path: str, text: str) -> None:
    """Ask many queries at once, and print the first answers."""
    # Opening reads files for longer than a loop should stand still, so it goes to a thread
    encoder = await asyncio.to_thread(dra.Encoder.open, bundle)
    gallery = await asyncio.to_thread(dra.Gallery.open, gallery_path, encoder)
    with dra.Batcher(gallery, max_pending=AT_ONCE) as batcher:
        ids = gallery.ids[:AT_ONCE]
        await batcher.search(text=text, id=ids[0])  # the first query loads the graphs
        ticking = asyncio.create_task(ticker())
        start = time.perf_counter()
        answers = await asyncio.gather(*(batcher.search(text=text, id=id, k=3, timeout=30) for id in ids))
        print(f"{len(answers)} queries answered in {time.perf_counter() - start:.2f} s")
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
    for id, hits in list(zip(ids, answers, strict=True))[:5]:
        print(f"{id} {text}: {', '.join(f'{hit.id} {hit.score:.3f}' for hit in hits)}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
