import { type Answer, type Message, type Model, nameOf, type Settings, type Turn } from "./types";

export interface State {
  turns: Turn[];
  /** Whether the kept conversation is here. Until then nothing can be asked, as it would be lost. */
  loaded: boolean;
  settings: Settings;
  models: Model[];
  /** Why there are no models; "" if they came, or are yet to come. */
  modelsProblem: string;
  /** What the user must see above the message box. */
  notice: string;
  /** For a screen reader. */
  status: string;
}

export type Action =
  | { type: "loaded"; turns: Turn[] }
  | { type: "models"; models: Model[]; problem: string }
  | { type: "settings"; changes: Partial<Settings> }
  | { type: "asked"; question: string; seed: number }
  | { type: "regenerated"; seed: number }
  | { type: "piece"; answer: number; text: string; thought: string }
  | { type: "continued"; answer: number }
  | ({ type: "ended"; answer: number } & Pick<Answer, "state" | "note" | "isCutOff" | "figures">)
  | { type: "kept"; answer: number }
  | { type: "cleared" }
  | { type: "notice"; text: string };

/** Pieces, ends and the kept answer are those of the last turn; turns before it never change. */
export function reduce(state: State, action: Action): State {
  switch (action.type) {
    case "loaded":
      return { ...state, turns: action.turns, loaded: true, notice: "" };
    case "models": {
      const { models, problem } = action;
      return { ...state, models, modelsProblem: problem, settings: withModels(state.settings, models) };
    }
    case "settings":
      return { ...state, settings: withModels({ ...state.settings, ...action.changes }, state.models) };
    case "asked":
      return begun(state, [...state.turns, begin(state.settings, action.question, action.seed)]);
    case "regenerated":
      return begun(
        state,
        withLast(state.turns, (turn) => ({
          ...turn,
          system: state.settings.system,
          seed: action.seed,
          answers: turn.answers.map(({ model }) => emptyAnswer(model)),
        })),
      );
    case "piece":
      return withAnswer(state, action.answer, (answer) => ({
        ...answer,
        text: answer.text + action.text,
        thought: answer.thought + action.thought,
      }));
    case "continued":
      return begun(state, withAnswer(state, action.answer, resumed).turns);
    case "ended": {
      const { state: end, note, isCutOff, figures } = action;
      return reported(
        withAnswer(state, action.answer, (answer) => ({ ...answer, state: end, note, isCutOff, figures })),
      );
    }
    case "kept":
      return { ...state, turns: withLast(state.turns, (turn) => ({ ...turn, kept: action.answer })) };
    case "cleared":
      return { ...state, turns: [], status: "" };
    case "notice":
      return { ...state, notice: action.text };
  }
}

export function isRunning({ turns }: State): boolean {
  return turns.at(-1)?.answers.some((answer) => answer.state === "running") ?? false;
}

/** The conversation up to a turn's question: the same for every model that answers it. */
export function messagesUpTo(turns: Turn[], at: number): Message[] {
  const { system, question } = turns[at]!;
  const before = turns.slice(0, at).flatMap((turn): Message[] => {
    const answer = turn.answers[turn.kept]!.text;
    if (!answer) return [];
    return [
      { role: "user", content: turn.question },
      { role: "assistant", content: answer },
    ];
  });
  const first: Message[] = system.trim() ? [{ role: "system", content: system }] : [];
  return [...first, ...before, { role: "user", content: question }];
}

function begin(settings: Settings, question: string, seed: number): Turn {
  const models = settings.compare ? [settings.model, settings.other] : [settings.model];
  return { question, system: settings.system, seed, kept: 0, answers: models.map(emptyAnswer) };
}

function emptyAnswer(model: string): Answer {
  return { model, text: "", thought: "", state: "running", note: "" };
}

function resumed(answer: Answer): Answer {
  return { ...answer, state: "running", note: "", isCutOff: false };
}

function begun(state: State, turns: Turn[]): State {
  const models = turns.at(-1)!.answers.map((answer) => answer.model);
  return { ...state, turns, status: `${models.join(" and ")} answering` };
}

function reported(state: State): State {
  if (isRunning(state)) return state;
  const ends = state.turns.at(-1)!.answers.map((answer) => `${answer.model}: ${answer.note || "done"}`);
  return { ...state, status: ends.join(". ") };
}

function withLast(turns: Turn[], change: (turn: Turn) => Turn): Turn[] {
  return turns.map((turn, at) => (at === turns.length - 1 ? change(turn) : turn));
}

function withAnswer(state: State, index: number, change: (answer: Answer) => Answer): State {
  const turns = withLast(state.turns, (turn) => ({
    ...turn,
    answers: turn.answers.map((answer, at) => (at === index ? change(answer) : answer)),
  }));
  return { ...state, turns };
}

/** Settings that name models of the server: those chosen before, else a tuned model beside its base. */
export function withModels(settings: Settings, models: Model[]): Settings {
  if (!models.length) return settings;
  const ids = models.map((model) => model.id);
  const tuned = models.find((model) => model.tunesmith?.kind === "tuned");
  const model = ids.includes(settings.model) ? settings.model : (tuned ?? models[0]!).id;
  const other = partner(settings.other, model, models);
  return { ...settings, model, other, compare: settings.compare && models.length > 1 };
}

/** The other model of a comparison: as chosen before, else the base of the tuned one, else any other. */
function partner(chosen: string, model: string, models: Model[]): string {
  const others = models.filter(({ id }) => id !== model);
  const base = models.find(({ id }) => id === model)?.tunesmith?.base;
  const found = others.find(({ id }) => id === chosen) ?? others.find((other) => nameOf(other) === base) ?? others[0];
  return found?.id ?? "";
}
