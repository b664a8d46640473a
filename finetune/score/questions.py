"""The prompts of all tasks, asked of any `Answerer`, and the answers graded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from finetune import metrics
from finetune.artifacts import Artifact
from finetune.chat import ChatFormat
from finetune.config.data import Task
from finetune.corpus.records import Chat, Mode
from finetune.metrics import labels
from finetune.score import baselines, prompts
from finetune.score.answers import Answer, Answerer, Asked, Say
from finetune.score.inprocess import InProcess
from finetune.score.rows import by_task, read
from finetune.score.summary import Scored, grade


@dataclass(frozen=True)
class Questions:
    """Test rows of every task, and what makes prompts of them."""

    rows: Mapping[str, Sequence[Chat]]
    train: Sequence[Chat]
    tasks: Mapping[str, Task]
    chat: ChatFormat
    shots: int
    seed: int

    @classmethod
    def read(
        cls, prepared: Artifact, chat: ChatFormat, tasks: Mapping[str, Task], *, shots: int, seed: int
    ) -> "Questions":
        """Raises RecipeError for a task without test rows, or with gold answers that cannot be scored."""
        train = list(read(prepared.file("train.jsonl")))
        return cls(by_task(read(prepared.file("test.jsonl")), tasks), train, tasks, chat, shots, seed)

    def examples(self, task: str, mode: str) -> list[Chat]:
        """The worked examples of a few-shot prompt."""
        return prompts.choose_shots(self.train, task, mode, self.shots, self.seed)

    def asked(self, task: str, *, few_shot: bool = False, mode: Mode | None = None, room: int = 0) -> list[Asked]:
        """The prompts of a task, each row in its own mode or all in `mode`; `room`: more tokens for the answer to a row
        of plain mode that is asked to think."""
        found = []
        for row in self.rows[task]:
            used = mode or row.mode
            shown = self.examples(task, used) if few_shot else []
            limit = self.tasks[task].max_new_tokens + (room if used != row.mode and used == "think" else 0)
            turns = prompts.with_shots(row, shown)
            found.append(Asked.render(self.chat, turns, used, row.tools, max_new_tokens=limit))
        return found

    def ask(
        self, system: str, answerer: Answerer, say: Say, *, few_shot: bool = False,
        drafts: Mapping[str, Sequence[Answer]] | None = None,
    ) -> tuple[dict[tuple[str, str], Scored], dict[str, list[Answer]]]:  # fmt: skip
        """What `system` answers: graded by (task, system), and as it came by task.

        drafts: answers of a model that is nearly this one; only a model in this process can use them.
        """
        scored, made = {}, {}
        for task in self.rows:
            asked = self.asked(task, few_shot=few_shot)
            say(f"score: {system}, {task}, {len(asked)} prompts")
            if metrics.kind(self.tasks[task]) == "likelihood":
                scored[task, system], made[task] = self.likeliest(task, asked, answerer)
                continue
            if drafts is not None and isinstance(answerer, InProcess):
                answers = answerer.answer(asked, drafts=drafts[task])
            else:
                answers = answerer.answer(asked)
            scored[task, system], made[task] = self.graded(task, asked, answers), answers
        return scored, made

    def graded(self, task: str, asked: Sequence[Asked], answers: Sequence[Answer]) -> Scored:
        texts = [answer.text for answer in answers]
        return Scored(
            texts, grade(texts, self.rows[task], self.tasks[task]), [one.sha256 for one in asked],
            [answer.finished for answer in answers],
        )  # fmt: skip

    def likeliest(self, task: str, asked: Sequence[Asked], answerer: Answerer) -> tuple[Scored, list[Answer]]:
        """Of each row the option that the model finds likeliest, as if it had answered that."""
        rows, normalise = self.rows[task], self.tasks[task].metric_options.normalise
        log_probs = answerer.likelihoods(asked, [row.choices for row in rows])
        texts = [
            labels.likeliest(own, row.choices, normalise=normalise) for own, row in zip(log_probs, rows, strict=True)
        ]
        made = [Answer(text, text, None, True, 0, 0.0) for text in texts]
        return replace(self.graded(task, asked, made), log_probs=log_probs), made

    def classic(self) -> dict[tuple[str, str], Scored]:
        """The baselines, for those tasks that have training rows to learn from."""
        found = {}
        for name, rows in self.rows.items():
            own = [row for row in self.train if row.task == name]
            if not own:
                continue
            asked = [one.sha256 for one in self.asked(name)]
            for system, answers in self._classic(own, rows, self.tasks[name]).items():
                scores = grade(answers, rows, self.tasks[name])
                found[name, system] = Scored(answers, scores, asked, [True] * len(rows))
        return found

    def _classic(self, train: Sequence[Chat], rows: Sequence[Chat], task: Task) -> dict[str, list[str]]:
        known, answers = [prompts.question(row) for row in train], [row.answer for row in train]
        asked = [prompts.question(row) for row in rows]
        return {
            "majority": [baselines.majority(train, task)] * len(rows),
            "linear_baseline": baselines.linear(known, answers, asked, seed=self.seed),
            "nearest_baseline": baselines.nearest(known, answers, asked),
        }
