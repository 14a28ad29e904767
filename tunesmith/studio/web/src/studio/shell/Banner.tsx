import { versions } from "../../api/http";
import { connected, problems, reconnect } from "../../api/live";
import { useValue } from "../../api/value";
import { Button } from "../../parts/Button";

/** Says above every view what the page cannot do now. */
export function Banner() {
  const isConnected = useValue(connected);
  const unread = useValue(problems);
  const { first, last } = useValue(versions);
  return (
    <>
      {isConnected === false && (
        <div className="banner warning" role="alert">
          <span>
            <b>The studio is not reachable; training continues.</b> What is shown may be old. Start it again with{" "}
            <code>tunesmith studio</code>.
          </span>
          <Button small onClick={reconnect}>
            Try now
          </Button>
        </div>
      )}
      {unread.map((problem) => (
        <div key={problem} className="banner warning" role="alert">
          {problem}
        </div>
      ))}
      {first !== last && (
        <div className="banner" role="status">
          <span>
            The studio is now version {last}. This page is of version {first}.
          </span>
          <Button small onClick={() => location.reload()}>
            Reload
          </Button>
        </div>
      )}
    </>
  );
}
