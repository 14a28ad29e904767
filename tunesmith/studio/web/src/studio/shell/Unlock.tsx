import { type FormEvent, useEffect, useState } from "react";

import { client, data } from "../../api/client";
import { locked } from "../../api/http";
import { reconnect } from "../../api/live";
import { onNewToken, storeToken } from "../../api/token";
import { messageOf } from "../../api/useFetched";
import { Brand } from "../../parts/Brand";
import { Button } from "../../parts/Button";
import { Field } from "../../parts/Field";

/** Asks for the key, where the stored one is missing or of an earlier start. */
export function Unlock() {
  const [key, setKey] = useState("");
  const [error, setError] = useState("");

  useEffect(() => onNewToken(() => void attempt(setError, false)), []);

  const submit = (event: FormEvent) => {
    event.preventDefault();
    // The whole address may be pasted too.
    storeToken(/#token=([^&\s]+)/.exec(key)?.[1] ?? key);
    void attempt(setError, true);
  };

  return (
    <main className="unlock">
      <Brand />
      <form onSubmit={submit}>
        <p>
          Open the address that <code>tunesmith studio</code> printed in the terminal, or enter its key here. Each start
          makes a new key, unless <code>--key</code> sets one. Jobs go on meanwhile.
        </p>
        <Field label="Key or address" error={error || undefined}>
          {(attributes) => (
            <input
              {...attributes}
              type="password"
              autoComplete="off"
              value={key}
              required
              autoFocus
              onChange={(event) => setKey(event.target.value)}
            />
          )}
        </Field>
        <Button type="submit" look="main">
          Open the studio
        </Button>
      </form>
    </main>
  );
}

async function attempt(setError: (text: string) => void, says: boolean): Promise<void> {
  try {
    await data(client.GET("/api/machine"));
    locked.set(false);
    reconnect();
  } catch (error) {
    if (says) setError(messageOf(error));
  }
}
