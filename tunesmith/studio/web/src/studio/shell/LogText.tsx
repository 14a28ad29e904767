import { useLayoutEffect, useRef } from "react";

/** Text that grows at its end. It follows the end while that is in view. */
export function LogText({ text, label }: { text: string; label: string }) {
  const box = useRef<HTMLPreElement>(null);
  const follows = useRef(true);

  useLayoutEffect(() => {
    if (box.current && follows.current) box.current.scrollTop = box.current.scrollHeight;
  }, [text]);

  return (
    <pre
      ref={box}
      className="log"
      tabIndex={0}
      role="log"
      aria-label={label}
      onScroll={({ currentTarget: { scrollTop, scrollHeight, clientHeight } }) => {
        follows.current = scrollHeight - scrollTop - clientHeight < 24;
      }}
    >
      {readable(text)}
    </pre>
  );
}

/** Without the control sequences of terminals; a line that was written over shows as it was last. */
function readable(text: string): string {
  return text
    .replace(/\u001b\[[0-9;?]*[A-Za-z]/g, "")
    .split("\n")
    .map((line) => line.replace(/\r$/, "").split("\r").pop())
    .join("\n");
}
