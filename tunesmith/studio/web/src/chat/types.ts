export interface Model {
  id: string;
  /** As users and other programs name it, if that is not the id: several servers may have a model of one name. */
  name?: string;
  tunesmith?: {
    kind: "base" | "tuned";
    base: string;
    /** The most tokens, prompt and answer together. */
    context: number;
    tools?: boolean;
    reasoning?: boolean;
    images?: boolean;
  };
}

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
  /** It is the beginning of the answer. */
  prefix?: boolean;
}

export interface Figures {
  tokens: number;
  secondsToFirst?: number;
  /** From the question to the end. */
  seconds?: number;
  tokensPerSecond?: number;
}

export interface Answer {
  /** The model's name. */
  model: string;
  text: string;
  thought: string;
  state: "running" | "done" | "stopped" | "failed";
  note: string;
  /** Whether it ended before the model ended it. */
  isCutOff?: boolean;
  figures?: Figures;
}

export function nameOf({ id, name }: Model): string {
  return name ?? id;
}

/** A question and its answers: one, or two when models are compared. */
export interface Turn {
  question: string;
  /** Data URLs. */
  images?: string[];
  system: string;
  seed: number;
  /** The index of the answer that the conversation goes on from. */
  kept: number;
  answers: Answer[];
}

export interface Settings {
  model: string;
  other: string;
  compare: boolean;
  system: string;
  temperature: number;
  top_p: number;
  max_tokens: number;
  /** Empty: a new one each time. */
  seed: number | "";
  markdown: boolean;
}
