// One conversation of the studio. Its answers are written by the studio's server; this follows them, and continues
// where it was whenever the page or the connection comes back.

import { client, type ConversationView, data, type Schemas } from "../../api/client";
import { base, errorOf, isAbort, send } from "../../api/http";
import { messages } from "../../api/sse";
import { messageOf } from "../../api/useFetched";
import { createStore, type Store } from "../../store";

const AGAIN_MS = 1000;

type Answer = Schemas["Answer"];
type Change = Schemas["ConversationChange"];

export interface State {
  view: ConversationView | null;
  problem: string;
}

/** A part of an answer's file. */
interface Part {
  text?: string;
  reasoning?: string;
  end?: Pick<Answer, "state"> & Partial<Answer>;
}

type Action =
  | { type: "shown"; view: ConversationView }
  | { type: "part"; answer: string; part: Part }
  | { type: "problem"; text: string };

export interface Followed {
  store: Store<State, Action>;
  /** Reads it anew and follows the answers that are being written. */
  load: () => Promise<void>;
  /** Asks; the studio has then taken it. Throws ApiError if it refuses. */
  ask: (question: Schemas["Question"]) => Promise<void>;
  /** Continues an answer. Throws ApiError if the studio refuses. */
  resume: (asked: Schemas["Continuation"]) => Promise<void>;
  stop: () => Promise<void>;
  change: (change: Change) => Promise<void>;
  /** Ends what follows answers. They are written all the same. */
  leave: () => void;
}

export function followConversation(name: string): Followed {
  const store = createStore<State, Action>(reduce, { view: null, problem: "" });
  const params = { path: { name } };
  let following = new AbortController();
  let timer = 0;
  let isLeft = false;

  function leave() {
    isLeft = true;
    clearTimeout(timer);
    following.abort();
  }

  function show(view: ConversationView) {
    clearTimeout(timer);
    following.abort();
    following = new AbortController();
    if (isLeft) return;
    store.dispatch({ type: "shown", view });
    for (const { answers } of view.turns) {
      for (const answer of answers) if (answer.state === "writing") void follow(answer, following.signal);
    }
  }

  /** Follows an answer to its end. If the connection breaks, the conversation is read again. */
  async function follow({ id, offset }: Answer, signal: AbortSignal) {
    try {
      const url = `${base}/api/conversations/${name}/answers/${id}?offset=${offset}`;
      const response = await send(new Request(url, { signal }));
      if (!response.ok) throw errorOf(await response.json().catch(() => null), response.status);
      for await (const { data: line } of messages(response.body!)) {
        const part = JSON.parse(line) as Part;
        const action: Action = { type: "part", answer: id, part };
        if (part.end) return store.dispatch(action);
        store.dispatchForFrame(action);
      }
    } catch (error) {
      if (isAbort(error)) return;
    }
    if (!signal.aborted) timer = window.setTimeout(load, AGAIN_MS);
  }

  async function load() {
    isLeft = false;
    try {
      show(await data(client.GET("/api/conversations/{name}", { params })));
    } catch (error) {
      if (!isLeft) store.dispatch({ type: "problem", text: messageOf(error) });
    }
  }

  return {
    store,
    load,
    leave,
    async ask(question) {
      show(await data(client.POST("/api/conversations/{name}/ask", { params, body: question })));
    },
    async resume(asked) {
      show(await data(client.POST("/api/conversations/{name}/continue", { params, body: asked })));
    },
    async stop() {
      show(await data(client.POST("/api/conversations/{name}/stop", { params })));
    },
    async change(change) {
      show(await data(client.POST("/api/conversations/{name}", { params, body: change })));
    },
  };
}

export function isWriting(view: ConversationView | null): boolean {
  return view?.turns.at(-1)?.answers.some(({ state }) => state === "writing") ?? false;
}

function reduce(state: State, action: Action): State {
  switch (action.type) {
    case "shown":
      return { view: action.view, problem: "" };
    case "problem":
      return { ...state, problem: action.text };
    case "part":
      return { ...state, view: state.view && withPart(state.view, action.answer, action.part) };
  }
}

function withPart(view: ConversationView, id: string, part: Part): ConversationView {
  const changed = (answer: Answer): Answer => ({
    ...answer,
    text: answer.text + (part.text ?? ""),
    reasoning: answer.reasoning + (part.reasoning ?? ""),
    ...part.end,
  });
  const turns = view.turns.map((turn) =>
    turn.answers.some((answer) => answer.id === id)
      ? { ...turn, answers: turn.answers.map((answer) => (answer.id === id ? changed(answer) : answer)) }
      : turn,
  );
  return { ...view, turns };
}
