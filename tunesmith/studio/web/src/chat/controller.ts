import { isAbort } from "../http/request";
import { createStore, type Store } from "../store";
import type { ChatApi } from "./api";
import { loadSettings, saveSettings } from "./browserStorage";
import { type ConversationStore, LEFT } from "./conversationStore";
import { type Action, isRunning, messagesUpTo, reduce, type State } from "./state";
import type { Figures, Settings } from "./types";

/** What happens in a chat when something is pressed. */
export interface Controller {
  store: Store<State, Action>;
  /** Finds the models and the kept conversation, if they are not here yet. */
  open: () => void;
  ask: (question: string) => Promise<void>;
  regenerate: () => Promise<void>;
  /** Continues an answer of the last turn from where it ends. */
  resume: (answer: number) => Promise<void>;
  stop: () => void;
  keep: (answer: number) => void;
  clear: () => void;
  change: (changes: Partial<Settings>) => void;
  /** Shows that the browser keeps no settings. */
  warnOfSettings: () => void;
  /** The page may be left, which breaks off what is coming; or it stays after all. */
  setLeaving: (leaving: boolean) => void;
  /** The chat is closed. What has come of an answer is kept. */
  leave: () => void;
}

export function createController(api: ChatApi, conversations: ConversationStore): Controller {
  const store = createStore(reduce, {
    turns: [],
    loaded: false,
    settings: loadSettings(),
    models: [],
    modelsProblem: "",
    notice: "",
    status: "",
  });
  let request: AbortController | null = null;
  let leaving = false;

  async function load() {
    try {
      store.dispatch({ type: "loaded", turns: await conversations.load() });
    } catch (error) {
      store.dispatch({ type: "notice", text: (error as Error).message });
    }
  }

  async function findModels() {
    try {
      store.dispatch({ type: "models", models: await api.listModels(), problem: "" });
    } catch (error) {
      store.dispatch({ type: "models", models: [], problem: (error as Error).message });
    }
  }

  async function keepTurns() {
    store.dispatch({ type: "notice", text: await conversations.save(store.get().turns) });
  }

  /** Lets all models of the last turn answer at once. */
  async function run() {
    const { signal } = (request = new AbortController());
    const { answers } = store.get().turns.at(-1)!;
    await Promise.all(answers.map((_, index) => receive(index, signal)));
    await keepTurns();
  }

  async function resume(answer: number) {
    if (!isRunning(store.get())) request = new AbortController(); // else the other answer's, so that both can be stopped
    store.dispatch({ type: "continued", answer });
    await receive(answer, request!.signal);
    await keepTurns();
  }

  async function receive(index: number, signal: AbortSignal) {
    const { turns, settings } = store.get();
    const at = turns.length - 1;
    const { seed, answers } = turns[at]!;
    const { model, text: begun, figures: before } = answers[index]!;
    const { temperature, top_p, max_tokens } = settings;
    const messages = messagesUpTo(turns, at);
    if (begun) messages.push({ role: "assistant", content: begun, prefix: true });
    const asked = { model, messages, temperature, top_p, max_tokens, seed };
    const clock = stopwatch(before?.tokens);
    let note = "";
    let end: "done" | "stopped" | "failed" = "done";
    try {
      for await (const { text, thought, finish, usage } of api.answer(asked, signal)) {
        if (usage) clock.setTokens(usage.completion_tokens);
        if (finish === "length") note = "Cut off: the answer reached the longest length.";
        if (!text && !thought) continue;
        clock.lap();
        store.dispatchForFrame({ type: "piece", answer: index, text, thought });
      }
    } catch (error) {
      end = isAbort(error) || leaving ? "stopped" : "failed";
      note = leaving ? LEFT : end === "stopped" ? "Stopped." : (error as Error).message;
    }
    store.dispatch({
      type: "ended",
      answer: index,
      state: end,
      note,
      isCutOff: note !== "",
      figures: clock.figures() ?? before,
    });
  }

  function warnOfSettings() {
    const text = "This browser has no room left. The settings are lost when this page is closed.";
    store.dispatch({ type: "notice", text });
  }

  return {
    store,
    open() {
      const { loaded, models } = store.get();
      if (!loaded) load();
      if (!models.length) findModels();
    },
    ask(question) {
      const { seed } = store.get().settings;
      store.dispatch({ type: "asked", question, seed: seed === "" ? newSeed() : seed });
      return run();
    },
    regenerate() {
      store.dispatch({ type: "regenerated", seed: newSeed(store.get().turns.at(-1)!.seed) });
      return run();
    },
    resume,
    stop() {
      request?.abort();
    },
    keep(answer) {
      store.dispatch({ type: "kept", answer });
      keepTurns();
    },
    clear() {
      store.dispatch({ type: "cleared" });
      keepTurns();
    },
    change(changes) {
      store.dispatch({ type: "settings", changes });
      if (!saveSettings(store.get().settings)) warnOfSettings();
    },
    warnOfSettings,
    setLeaving(now) {
      leaving = now;
    },
    leave() {
      if (!isRunning(store.get())) return; // a tab that is not answering has nothing to write
      leaving = true;
      keepTurns();
      request?.abort();
    },
  };
}

function newSeed(old?: number): number {
  const seed = Math.floor(Math.random() * 2 ** 31);
  return seed === old ? newSeed(old) : seed;
}

/** Measures an answer from now on; `before` are the tokens that it had already. */
function stopwatch(before = 0) {
  const began = performance.now();
  let first: number | undefined;
  let last = began;
  let laps = 0;
  let counted: number | undefined;
  return {
    lap() {
      last = performance.now();
      first ??= last;
      laps += 1;
    },
    /** The server's own count; without it, each piece counts as a token. */
    setTokens(count: number) {
      counted = count;
    },
    figures(): Figures | undefined {
      if (first === undefined) return undefined;
      const tokens = counted ?? laps;
      const seconds = (last - first) / 1000;
      const tokensPerSecond = tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : undefined;
      return { tokens: before + tokens, secondsToFirst: (first - began) / 1000, tokensPerSecond };
    },
  };
}
