from cxrjax.input import converted_sets, crops, source, throughput


def test_both_rates_count_the_same_work(written):
    read = source.select(converted_sets.open_set("rich", written.data_dir), "train")
    calls = []

    def count(example, rng):
        calls.append(rng)
        return {"image": crops.fit(crops.decode(example["image"]), 16)}

    measured = throughput.measure(read, count, batch_size=4, seconds=0.01)
    assert set(measured) == {"grain_images_per_s", "raw_images_per_s", "share"}
    assert all(value > 0 for value in measured.values())
    # Per path: one turn of 2 x 2 batches to find the pace, then three turns of four times as many.
    assert len(calls) == 2 * (4 + 3 * 16) * 4
