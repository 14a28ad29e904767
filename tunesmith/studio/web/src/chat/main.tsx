import { createRoot } from "react-dom/client";

import { Brand } from "../parts/Brand";
import "../styles/index.css";
import { chatApi } from "./api";
import { browserConversation, tabKey } from "./browserStorage";
import { Chat } from "./Chat";

const api = chatApi("", (): Record<string, string> => {
  const key = tabKey.load();
  return key ? { Authorization: `Bearer ${key}` } : {};
});

createRoot(document.getElementById("root")!).render(
  <Chat api={api} conversations={browserConversation} apiKey={tabKey} heading={<Brand />} />,
);
