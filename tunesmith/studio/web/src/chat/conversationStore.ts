import type { Answer, Turn } from "./types";

/** Where a conversation is kept. */
export interface ConversationStore {
  /** Rejects with what the user must know. */
  load: () => Promise<Turn[]>;
  /** Resolves to what the user must know about the loss, or to "" if the turns are kept. When the page is left, only
   * what is done before the first await is certain to happen. */
  save: (turns: Turn[]) => Promise<string>;
}

export const LEFT = "Stopped: the page was left.";

/** Turns as they were kept, without those that are damaged. An answer that was coming then comes no more. */
export function restored(kept: unknown): Turn[] {
  const turns: Turn[] = (Array.isArray(kept) ? kept : []).filter((turn) => turn?.answers?.[turn.kept]);
  return turns.map((turn) => ({ ...turn, answers: turn.answers.map(ended) }));
}

function ended(answer: Answer): Answer {
  return answer.state === "running" ? { ...answer, state: "stopped", note: LEFT } : answer;
}
