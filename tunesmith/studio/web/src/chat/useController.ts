import { useEffect, useState } from "react";

import type { ChatApi } from "./api";
import { type Controller, createController } from "./controller";
import type { ConversationStore } from "./conversationStore";

/** The chat's controller for as long as the component is shown. */
export function useController(api: ChatApi, conversations: ConversationStore): Controller {
  const [controller] = useState(() => createController(api, conversations));

  useEffect(() => {
    controller.open();
    return () => controller.leave();
  }, [controller]);

  useEffect(() => {
    let timer = 0;
    const listening = new AbortController();
    const { signal } = listening;
    // Browsers say this before they break off requests. The page may stay after all.
    const announced = () => {
      controller.setLeaving(true);
      timer = window.setTimeout(() => controller.setLeaving(false), 5000);
    };
    const stopped = (event: KeyboardEvent) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) controller.stop();
    };
    window.addEventListener("beforeunload", announced, { signal });
    window.addEventListener("pagehide", () => controller.leave(), { signal });
    window.addEventListener("pageshow", () => controller.setLeaving(false), { signal });
    document.addEventListener("keydown", stopped, { signal });
    return () => {
      listening.abort();
      clearTimeout(timer);
    };
  }, [controller]);

  return controller;
}
