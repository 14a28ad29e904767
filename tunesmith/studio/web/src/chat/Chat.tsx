import { type ReactNode, useCallback, useRef, useState, useSyncExternalStore } from "react";

import { Button } from "../parts/Button";
import { Confirm } from "../parts/Confirm";
import { Notice } from "../parts/Notice";
import type { ChatApi } from "./api";
import type { KeyStore } from "./browserStorage";
import "./chat.css";
import { Composer } from "./Composer";
import type { ConversationStore } from "./conversationStore";
import { ModelChoice } from "./ModelChoice";
import { SettingsDialog } from "./SettingsDialog";
import { isRunning, messagesUpTo } from "./state";
import { type Prompt, TokensDialog } from "./TokensDialog";
import { TurnView } from "./TurnView";
import { useController } from "./useController";
import { useFollowedEnd } from "./useFollowedEnd";
import { Welcome } from "./Welcome";

interface Props {
  api: ChatApi;
  conversations: ConversationStore;
  /** Where the API key is kept; without it none is asked for. */
  apiKey?: KeyStore;
  /** Stands before the choice of models. */
  heading?: ReactNode;
}

/** A chat with one model, or with two side by side. `api` and `conversations` must not change. */
export function Chat({ api, conversations, apiKey, heading }: Props) {
  const controller = useController(api, conversations);
  const { store, regenerate, keep } = controller;
  const state = useSyncExternalStore(store.subscribe, store.get);
  const { turns, models, settings, modelsProblem } = state;
  const running = isRunning(state);

  const [settingsOpen, setSettingsOpen] = useState(false);
  const [clearOpen, setClearOpen] = useState(false);
  const [prompt, setPrompt] = useState<Prompt | null>(null);
  const pane = useRef<HTMLElement>(null);
  const box = useRef<HTMLTextAreaElement>(null);
  const goToEnd = useFollowedEnd(pane, turns);

  const send = (question: string) => {
    if (!models.length || !state.loaded) {
      controller.open(); // the server may be there by now; if not, that is said
      return false;
    }
    goToEnd();
    controller.ask(question);
    return true;
  };

  const showTokens = useCallback(
    (turn: number, answer: number) => {
      const all = store.get().turns;
      setPrompt({ model: all[turn]!.answers[answer]!.model, messages: messagesUpTo(all, turn) });
    },
    [store],
  );

  const closeSettings = () => {
    setSettingsOpen(false);
    controller.open(); // there is a key now, perhaps
  };

  const closeClear = () => {
    setClearOpen(false);
    if (!store.get().turns.length) box.current!.focus(); // the Clear button is disabled now
  };

  const notice = state.notice || (turns.length ? modelsProblem : "");
  return (
    <div className="chat">
      <header>
        {heading}
        <ModelChoice models={models} settings={settings} disabled={running} onChange={controller.change} />
        <div className="tools">
          <Button id="open-settings" look="quiet" onClick={() => setSettingsOpen(true)}>
            Settings
          </Button>
          <Button id="clear" look="quiet" disabled={running || !turns.length} onClick={() => setClearOpen(true)}>
            Clear
          </Button>
        </div>
      </header>

      <main ref={pane} id="conversation" aria-label="Conversation" tabIndex={0}>
        {turns.map((turn, at) => (
          <TurnView
            key={at}
            turn={turn}
            at={at}
            last={at === turns.length - 1}
            models={models}
            asMarkdown={settings.markdown}
            onRegenerate={regenerate}
            onKeep={keep}
            onTokens={showTokens}
          />
        ))}
        {!turns.length && <Welcome model={models.find(({ id }) => id === settings.model)} problem={modelsProblem} />}
      </main>
      <p id="status" className="unseen" role="status">
        {state.status}
      </p>

      <Composer
        box={box}
        running={running}
        lastQuestion={turns.at(-1)?.question}
        onSend={send}
        onStop={controller.stop}
      >
        {notice && (
          <Notice id="notice" tone="bad">
            {notice}
          </Notice>
        )}
      </Composer>

      <SettingsDialog
        open={settingsOpen}
        settings={settings}
        apiKey={apiKey}
        onChange={controller.change}
        onKeyLost={controller.warnOfSettings}
        onClose={closeSettings}
      />
      <TokensDialog api={api} prompt={prompt} onClose={() => setPrompt(null)} />
      <Confirm
        title="Clear the conversation?"
        text="Its questions and answers are deleted from this browser."
        verb="Clear"
        open={clearOpen}
        onConfirm={controller.clear}
        onClose={closeClear}
      />
    </div>
  );
}
