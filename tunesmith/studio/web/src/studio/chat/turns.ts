import type { ConversationView, Schemas } from "../../api/client";
import type { Answer, Message, Turn } from "../../chat/types";

type TurnView = Schemas["TurnView"];

/** The detail of an answer that reached its longest length. */
export const LENGTH = "length";

const made = new WeakMap<TurnView, Turn>();

/** Turns of the studio as the chat shows them. One that has not changed stays the same object. */
export function turnsOf({ turns, system }: ConversationView): Turn[] {
  return turns.map((turn) => {
    const known = made.get(turn);
    if (known) return known;
    const { question, images, sampling, answers } = turn;
    const shown = { question, images, system, seed: sampling.seed ?? 0, kept: 0, answers: answers.map(answerOf) };
    made.set(turn, shown);
    return shown;
  });
}

function answerOf({ model, text, reasoning, state, detail, tokens, seconds }: Schemas["Answer"]): Answer {
  const figures = tokens ? { tokens, seconds: seconds ?? undefined } : undefined;
  const shown = state === "writing" ? "running" : state;
  const isCutOff = state === "stopped" || state === "failed" || detail === LENGTH;
  return { model, text, thought: reasoning, state: shown, note: noteOf(state, detail), isCutOff, figures };
}

function noteOf(state: Schemas["Answer"]["state"], detail: string): string {
  if (state === "failed") return `Failed: ${detail}`;
  if (state === "stopped") return "Stopped.";
  return detail === LENGTH ? "Cut off: the answer reached the longest length." : "";
}

/** What a model read before it answered, as the studio's server puts it together. */
export function messagesBefore({ turns, system }: ConversationView, at: number, answer: number): Message[] {
  const { model } = turns[at]!.answers[answer]!;
  const messages: Message[] = system ? [{ role: "system", content: system }] : [];
  for (const { question, answers } of turns.slice(0, at)) {
    const own = answers.find((one) => one.model === model) ?? answers[Math.min(answer, answers.length - 1)];
    if (!own?.text) continue;
    messages.push({ role: "user", content: question }, { role: "assistant", content: own.text });
  }
  return [...messages, { role: "user", content: turns[at]!.question }];
}
