"""transformers' static `generate`: rows of like length together, padded on the left to the longest."""

from __future__ import annotations

from ops.bench.work import Batch, Clock, Outcome, Setup, Work

BATCH_ROWS = 32


def static_generate(setup: Setup) -> Batch:
    """Batches of BATCH_ROWS; all rows get the same number of new tokens, so that no row waits for another's end."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    torch.set_num_threads(setup.threads)
    set_verbosity_error()
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        setup.model_dir, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()

    def some(prompts: list[list[int]], generation: GenerationConfig) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, generation_config=generation)
        answers: list[list[int]] = out[:, longest:].tolist()
        return answers

    def complete(work: Work) -> Outcome:
        sampling = {"do_sample": True, "temperature": work.temperature} if work.temperature else {"do_sample": False}
        generation = GenerationConfig(
            max_new_tokens=work.new_tokens,
            num_return_sequences=work.num_samples,
            eos_token_id=None,
            pad_token_id=0,
            **sampling,
        )
        by_length = sorted(range(len(work.prompts)), key=lambda row: len(work.prompts[row]))
        outputs: dict[int, list[list[int]]] = {}
        clock = Clock()
        for begin in range(0, len(by_length), BATCH_ROWS):
            rows = by_length[begin : begin + BATCH_ROWS]
            answers = some([work.prompts[row] for row in rows], generation)
            for index, row in enumerate(rows):
                outputs[row] = answers[index * work.num_samples : (index + 1) * work.num_samples]
        seconds, cpu_seconds = clock.read()
        return Outcome(
            outputs=[answer for row in range(len(work.prompts)) for answer in outputs[row]],
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            detail={"batch_rows": BATCH_ROWS},
        )

    return complete
