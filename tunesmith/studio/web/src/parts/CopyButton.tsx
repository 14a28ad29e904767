import { useEffect, useState } from "react";

import { Button } from "./Button";

interface Props {
  text: string;
  /** For a screen reader: what is copied. */
  label: string;
}

/** Says for a moment whether the text was copied. */
export function CopyButton({ text, label }: Props) {
  const [said, setSaid] = useState("");

  useEffect(() => {
    if (!said) return;
    const timer = setTimeout(() => setSaid(""), 1500);
    return () => clearTimeout(timer);
  }, [said]);

  const copy = async () => setSaid((await copied(text)) ? "Copied" : "Not copied");
  return (
    <Button look="quiet" small aria-label={label} onClick={copy}>
      {said || "Copy"}
    </Button>
  );
}

async function copied(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text); // browsers offer it to pages from this machine or over https only
    return true;
  } catch {
    return false;
  }
}
