"""The table of sketch errors: smaller with D, and as large as the theory says."""

from evaluate.benchmarks.sketch_error import Arguments, measure


def test_the_error_of_a_cosine_falls_with_the_root_of_the_sketchs_size(tmp_path):
    args = Arguments(out_dir=str(tmp_path), shape="tiny", triplets=6, clusters=6, dims=[64, 4096], seeds=3)
    small, large = measure(args)
    assert 0.2 < small["cosine_rms_error"] * 64**0.5 < 1.6
    assert large["cosine_rms_error"] < small["cosine_rms_error"] / 3
    assert large["weight_largest_relative_error"] < small["weight_largest_relative_error"] < 0.05
