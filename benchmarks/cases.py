"""What `benchmarks.pages` shows of each benchmark: its result file, the command that makes it, and its rows, with what is asked of them."""

from __future__ import annotations

from dataclasses import dataclass

from vla.demo.plan import DECODERS as DEMO_DECODERS


@dataclass(frozen=True)
class Row:
    """One number of a result: `key` with dots for nesting, `at_least` or `at_most` for what it should be."""

    label: str
    key: str
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Case:
    """One benchmark: its result file, the command that makes it, what it measures, and its rows; or the `columns` (heading, key) of the
    rows that the result itself has."""

    title: str
    file: str
    command: str
    what: str
    rows: tuple[Row, ...] = ()
    columns: tuple[tuple[str, str], ...] = ()


SPEEDUP = (
    Row("speed-up", "speedup", "x", at_least=5.0),
    Row("- by rendering only where the policy looks", "by_rendering", "x"),
    Row("- by processes and batches", "by_parallelism", "x"),
    Row("episodes", "episodes"),
    Row("successes, the loop", "successes_loop"),
    Row("successes, ours", "successes_project"),
)
INFERENCE = (
    ("parameters", "parameters"),
    ("operations, plain", "plain_operations"),
    ("optimized", "optimized_operations"),
    ("plain, ms", "plain_ms"),
    ("optimized, ms", "optimized_ms"),
    ("transformers, ms", "peer_ms"),
    ("limit, ms", "limit_ms"),
    ("share of the limit", "share_of_limit"),
)
TRAINING = (
    ("parameters", "parameters"),
    ("batch", "batch"),
    ("GFLOP a sample", "gflop_a_sample"),
    ("samples/s", "plain_samples_per_s"),
    ("compiled, samples/s", "compiled_samples_per_s"),
    ("transformers, samples/s", "peer_samples_per_s"),
    ("MFU", "plain_mfu"),
    ("MFU, compiled", "compiled_mfu"),
)
FEATURES = {
    "paligemma/pooled": "small PaliGemma, pooled on the last token",
    "paligemma/parallel": "small PaliGemma, parallel decoding",
    "paligemma/per_layer": "small PaliGemma, keys and values of each layer",
    "paligemma/cross": "small PaliGemma, cross-attention",
    "resnet18/parallel": "ResNet-18, parallel decoding",
    "resnet18/cross": "ResNet-18, cross-attention",
}
VIDEO_SIZES = ("224x224", "456x256", "640x480")

CASES = (
    Case(
        "Loader",
        "loader.json",
        "python -m benchmarks.loader --json",
        "CPU seconds a 224 px frame that the training process gets, against decoding alone and against stock webdataset.",
        (
            Row("simplejpeg alone", "decode_fps", "frames/s a core"),
            Row("delivered", "loader_fps", "frames/s a core"),
            Row("delivered / simplejpeg's plain call", "ratio_to_decode_fresh", at_least=0.85),
            Row("- least of the processes", "ratio_to_decode_fresh_least"),
            Row("- most", "ratio_to_decode_fresh_most"),
            Row("delivered / simplejpeg into one buffer that stays in the caches", "ratio_to_decode", at_least=0.85),
            Row("against stock webdataset", "ratio_to_webdataset", "x", at_least=2.0),
            Row("memory growth, 10,000 to 1,000,000 steps", "rss_growth", at_most=0.05),
            Row("first batch, 60 datasets, 100 million steps", "first_batch_s", "s", at_most=10.0),
            Row("memory then", "first_batch_rss_mb", "MB", at_most=1000.0),
        ),
    ),
    Case(
        "Video conversion",
        "video.json",
        "python -m benchmarks.video --json --blocks 4 --sizes 224x224 456x256 640x480",
        "H.264 with B-frames as cameras write it, from the file to a finished dataset of JPEGs of 224 px, beside PyAV's own decoding "
        "loop. By the clock: `vla convert` with its two processes, on a folder of clips. CPU seconds: one process; the bound is what "
        "decoding and libjpeg-turbo's encoding alone would leave.",
        tuple(
            row
            for size in VIDEO_SIZES
            for row in (
                Row(f"{size}: PyAV decodes", f"{size}.wall_decode_fps", "frames/s"),
                Row(f"{size}: PyAV with FFmpeg's threads", f"{size}.wall_decode_threads_fps", "frames/s"),
                Row(f"{size}: converted", f"{size}.wall_convert_fps", "frames/s"),
                Row(f"{size}: speed, of PyAV's", f"{size}.ratio_wall_convert_to_decode", at_least=0.5),
                Row(f"{size}: speed, of PyAV's with threads", f"{size}.ratio_wall_convert_to_decode_threads", at_least=0.5),
                Row(f"{size}: CPU seconds, of decoding", f"{size}.ratio_convert_to_decode"),
                Row(f"{size}: CPU seconds, of decoding to arrays", f"{size}.ratio_convert_to_decode_rgb"),
                Row(f"{size}: bound of CPU seconds, of decoding", f"{size}.ratio_bound"),
                Row(f"{size}: packets as they are, of decoding", f"{size}.ratio_convert_mp4_fitting_to_decode_fitting"),
                Row(f"{size}: encoded anew to mp4, of decoding", f"{size}.ratio_convert_mp4_to_decode"),
            )
        ),
    ),
    Case(
        "RLDS conversion",
        "rlds.json",
        "python -m benchmarks.rlds --json",
        "Converting an RLDS dataset, against reading the same dataset through tensorflow-datasets.",
        (Row("wall", "ratio", "x", at_least=1.0), Row("CPU seconds", "ratio_cpu", "x", at_least=1.0)),
    ),
    Case(
        "Decoders",
        "decoders.json",
        "python -m benchmarks.decoders --json",
        "Eight noise samples a context against one, in loss samples a second, and against what their operations predict. A call of each "
        "of the demo's decoders with two threads, observation to chunk: masked diffusion with 4 evaluations, the flow with 4 steps. "
        "Weights are random, the worst case for `tokens`, which decodes ahead (docs/design.md); trained ones stand beside it.",
        (
            Row("K = 8 / K = 1", "k8_over_k1", "x"),
            Row("against the prediction", "k8_over_prediction", at_least=0.85),
            *(Row(f"a call, `{name}`", f"demo_ms_per_call.{name}", "ms", at_most=30.0) for name in DEMO_DECODERS),
            Row("a call, `tokens`, trained", "trained_ms_per_call", "ms", at_most=30.0),
        ),
    ),
    Case(
        "Small policies beside lerobot's",
        "peers.json",
        "python -m benchmarks.peers --json",
        "The presets `act` and `diffusion_policy` beside lerobot's ACTPolicy and DiffusionPolicy: equal parameters, images, states and "
        "chunks, the same denoising evaluations, in turn in one process. Each trains by the optimizer that its own trainer makes. Ratios "
        "above 1: ours is faster.",
        (
            Row("ACT: parameters, ours / lerobot's", "act.parameters_ratio"),
            Row("a call, ours", "act.ours_ms_per_call", "ms"),
            Row("a call, lerobot", "act.theirs_ms_per_call", "ms"),
            Row("speed of a call", "act.call_ratio", "x", at_least=1.0),
            Row("speed of training", "act.train_ratio", "x", at_least=1.0),
            Row("- lerobot's optimizer fused like ours", "act.train_fused_ratio", "x"),
            Row("Diffusion: parameters, ours / lerobot's", "diffusion.parameters_ratio"),
            Row("a call, ours", "diffusion.ours_ms_per_call", "ms"),
            Row("a call, lerobot", "diffusion.theirs_ms_per_call", "ms"),
            Row("speed of a call", "diffusion.call_ratio", "x", at_least=1.0),
            Row("speed of training", "diffusion.train_ratio", "x", at_least=1.0),
            Row("- lerobot's optimizer fused like ours", "diffusion.train_fused_ratio", "x"),
        ),
    ),
    Case(
        "Published heads on a small PaliGemma",
        "inference.json",
        "python -m benchmarks.inference --json",
        "A call with random weights: plain, by `Policy.optimize_for_inference`, by transformers' own class of the same sizes where it has "
        "one, and the sum of the least times of all products, convolutions and attentions at the best matrix product and copy of the same "
        "machine. Operations: what torch is asked for that is no view. Nothing is captured without a GPU.",
        columns=INFERENCE,
    ),
    Case(
        "Published sizes on a GPU",
        "inference_cuda.json",
        "python -m benchmarks.inference --size published --device cuda --json",
        "The same at the models' real sizes, in bf16, calls captured as CUDA graphs.",
        columns=(*INFERENCE, ("goal on an H200, ms", "goal_ms_h200")),
    ),
    Case(
        "Training steps on a small PaliGemma",
        "training.json",
        "python -m benchmarks.training --json",
        "Forward, backward and AdamW with random weights; MFU is against the best matrix product of the same machine.",
        columns=TRAINING,
    ),
    Case(
        "Training steps at published sizes on a GPU",
        "training_cuda.json",
        "python -m benchmarks.training --size published --device cuda --batch 32 --compiled --json",
        "The same at the models' real sizes, in bf16.",
        columns=TRAINING,
    ),
    Case(
        "Features of a frozen backbone",
        "features.json",
        "python -m benchmarks.features --json --steps 10 --rounds 3",
        "Samples a second of a run whose observations were kept by an earlier one, over those of the same run without; random weights, one "
        "thread.",
        tuple(
            row
            for name, what in FEATURES.items()
            for row in (
                Row(what, f"{name}.speedup", "x"),
                Row("- an observation on disk", f"{name}.kb", "kB"),
                Row("- largest difference of losses", f"{name}.loss_difference", at_most=1e-5),
            )
        ),
    ),
    Case(
        "Robots of different lengths",
        "views.json",
        "python -m benchmarks.views --rounds 5 --batch-size 6 --json",
        "A training step on robots of one, one and three cameras: all as wide as the widest, or views and tokens that a sample lacks left "
        "out. One thread.",
        tuple(
            row
            for name, what in (("paligemma", "a small PaliGemma"), ("tiny", "the tiny backbone"))
            for row in (
                Row(f"{what}: a step", f"{name}.speedup.views_and_tokens", "x"),
                Row("- images a sample, as the widest", f"{name}.images.filled_up"),
                Row("- images a sample, now", f"{name}.images.views_and_tokens"),
                Row("- tokens a sample, as the widest", f"{name}.tokens.filled_up"),
                Row("- tokens a sample, now", f"{name}.tokens.views_and_tokens"),
            )
        ),
    ),
    Case(
        "The first action",
        "first_action.json",
        "python -m benchmarks.first_action --json",
        "A new process that imports, loads `checkpoints/arms-small` and acts, from its start to its end.",
        (
            Row("median", "first_action_s", "s", at_most=5.0),
            Row("slowest", "slowest_s", "s", at_most=5.0),
        ),
    ),
    Case(
        "Server",
        "serve.json",
        "python -m benchmarks.serve --json",
        "A request with two 224 px images over loopback, beyond the policy's own time; health during a 3 s inference; 32 clients against "
        "the same policy called directly at the same batch sizes.",
        (
            Row("overhead, median", "overhead_ms_p50", "ms", at_most=2.0),
            Row("the same bytes over a bare socket", "echo_ms_p50", "ms"),
            Row("health during an inference, slowest", "health_ms_during_inference", "ms", at_most=50.0),
            Row("32 clients / called directly", "batching_efficiency_32", at_least=0.8),
        ),
    ),
    Case(
        "Training loop",
        "train_loop.json",
        "python -m benchmarks.train_loop --json",
        "What everything but forward, backward and the optimizer's step costs, and what saving costs.",
        (
            Row("overhead at steps of 100 ms", "overhead", at_most=0.03),
            Row("a save every 20 steps, in the background", "async_save_overhead", at_most=0.05),
            Row("saving a state of 1 GB", "save_gb_per_s", "GB/s"),
            Row("the same disk, bare", "disk_gb_per_s", "GB/s"),
        ),
    ),
    Case(
        "Evaluation",
        "evaluate.json",
        "python -m benchmarks.evaluate --json",
        "Episodes a minute against a synchronous gymnasium loop of one process that renders every step, same chunk; four tasks.",
        SPEEDUP,
    ),
    Case(
        "Evaluation, half as long",
        "evaluate_20.json",
        "python -m benchmarks.evaluate --episodes 20 --json",
        "The same with 80 episodes, of which the start of the simulators' processes is a larger share.",
        SPEEDUP,
    ),
    Case(
        "Latent actions",
        "latent.json",
        "python -m benchmarks.latent --json",
        "Codes of a model that saw video only, on held-out episodes.",
        (
            Row("linear probe, codes to the hand's displacement", "probe_r2", "R²", at_least=0.7),
            Row("perplexity, share of the codebook", "perplexity_share", at_least=0.6),
            Row("two stages beside a distractor", "two_stage_r2", "R²"),
            Row("one stage beside a distractor", "one_stage_r2", "R²"),
            Row("the readout's share of the policy's latency", "readout_latency_share", at_most=0.05),
        ),
    ),
)
