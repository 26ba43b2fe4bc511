"""A BERT of transformers that is fine-tuned: a frozen base, layers with rates of their own, a linear warm-up."""

import torch
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

from blowtorch import Run, Schedule

SEED, EPOCHS, DECAY = 10, 3, 0.8
run = Run(random_seed=SEED)


def make_model():
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_labels": 3}
    config = BertConfig(num_hidden_layers=3, num_attention_heads=2, **sizes)
    model = BertForSequenceClassification(config)
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False)
    return model.train()


@run.train_step
@run.validate_step
def step(batch, model):
    return model(**batch)


@run.configure_optimizers
def configure_optimizers(model):
    layers = [*model.bert.encoder.layer[1:], model.bert.pooler, model.classifier]
    groups = [
        {"params": list(layer.parameters()), "lr": 1e-3 * DECAY**depth} for depth, layer in enumerate(reversed(layers))
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    return optimizer, Schedule(get_linear_schedule_with_warmup(optimizer, 4, 10 * EPOCHS), every="1 step")


def make_batches():
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(50, (4, 7), generator=generator),
            "attention_mask": torch.ones(4, 7, dtype=torch.int64),
            "labels": torch.randint(3, (4,), generator=generator),
        }
        for _ in range(10)
    ]


def train():
    model = make_model()
    run(model, make_batches(), make_batches()[:2], max_epochs=EPOCHS, clip_grad_norm=1.0, checkpoint_frozen=False)
    return model


def by_hand():
    torch.manual_seed(SEED)
    model = make_model()
    optimizer, schedule = configure_optimizers(model)
    for _ in range(EPOCHS):
        for batch in make_batches():
            optimizer.zero_grad()
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(
                [parameter for group in optimizer.param_groups for parameter in group["params"]], 1.0
            )
            optimizer.step()
            schedule.scheduler.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "weights.pt")
