import { client, data } from "../../api/client";
import { useFetched } from "../../api/useFetched";

/** The report as it is kept with the run. Its address is a secret of its own and holds no key. */
export function ReportTab({ id }: { id: string }) {
  const { data: address, error } = useFetched(`report ${id}`, () =>
    data(client.POST("/api/runs/{name}/report", { params: { path: { name: id } } })),
  );
  if (error)
    return (
      <p className="notice bad" role="alert">
        {error}
      </p>
    );
  if (!address) return <p className="note">Writing the report…</p>;
  return (
    <>
      <p className="choose">
        <a href={address.url} target="_blank" rel="noreferrer">
          Open in a new tab
        </a>
      </p>
      <iframe className="report" title="Report of the run" src={address.url} sandbox="" />
    </>
  );
}
