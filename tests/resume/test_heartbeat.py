import torch
from composer import ComposerModel, Trainer
from torch.nn import Linear
from torch.utils.data import DataLoader, TensorDataset

from rewarm.resume.heartbeat import Heartbeat


class Tiny(ComposerModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Linear(2, 1)

    def forward(self, batch):
        return self.layer(batch[0])

    def loss(self, outputs, batch):
        return (outputs - batch[1]).square().mean()

    def eval_forward(self, batch, outputs=None):
        return self.forward(batch)

    def update_metric(self, batch, outputs, metric) -> None:
        return


def test_each_phase_of_a_real_trainer_is_told_with_its_batch():
    told: list[tuple[str, bool | None]] = []
    data = DataLoader(TensorDataset(torch.ones(4, 2), torch.ones(4, 1)), batch_size=2)
    model = Tiny()
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataloader=data,
        eval_dataloader=data,
        eval_interval='1ba',
        max_duration='2ba',
        callbacks=[Heartbeat(lambda where, settled=None: told.append((where, settled)))],
        device='cpu',
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()

    begin = told.index(('start of a stage', False))
    assert told[begin + 1 : begin + 9] == [
        ('waiting for the data of batch 1', None),
        ('start of batch 1', None),
        ('forward of batch 1', None),
        ('backward of batch 1', None),
        ('after the backward of batch 1', None),
        ('optimizer step of batch 1', None),
        ('end of batch 1', True),
        ('start of an evaluation after batch 1', None),
    ]
    where = [text for text, _ in told]
    assert where.count('evaluation after batch 1') == 4  # two batches, each with a beginning and an end
    order = ['end of an evaluation after batch 1', 'checkpoint after batch 1', 'forward of batch 2', 'end of batch 2']
    assert [text for text in where if text in order] == order
    assert where[-1] == 'end of the stage after batch 2'
