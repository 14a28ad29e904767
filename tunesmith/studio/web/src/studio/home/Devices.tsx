import type { Device, Machine, Schemas } from "../../api/client";
import { bytes, decimal } from "../numbers";
import { href } from "../router";
import { Meter } from "./Meter";

type Holder = Schemas["Holder"];

/** The GPUs, or the CPU of a machine without one, and who holds them. */
export function Devices({ machine }: { machine: Machine }) {
  return (
    <section className="panel" aria-labelledby="devices">
      <h2 id="devices">{machine.gpus.length ? "GPUs" : "Machine"}</h2>
      <ul className="devices">
        {machine.gpus.map((gpu) => (
          <DeviceRow key={gpu.key} device={gpu} />
        ))}
        <DeviceRow
          device={machine.cpu}
          label={`${machine.cpu.name} · ${machine.cores} cores, load ${decimal(machine.load, 2)}`}
        />
        <li>
          <Meter
            label="Disk"
            used={machine.disk_total_bytes - machine.disk_free_bytes}
            total={machine.disk_total_bytes}
            text={`${bytes(machine.disk_free_bytes)} free of ${bytes(machine.disk_total_bytes)}`}
          />
          <p className="holders note path" title={machine.folder}>
            {machine.folder}
          </p>
        </li>
      </ul>
    </section>
  );
}

function DeviceRow({ device, label = device.name }: { device: Device; label?: string }) {
  const used = device.total_bytes - device.free_bytes;
  return (
    <li>
      <Meter
        label={label}
        used={used}
        total={device.total_bytes}
        text={`${bytes(used)} of ${bytes(device.total_bytes)} used`}
        aside={figures(device)}
      />
      <p className="holders note">
        {device.holders.length === 0 && "idle"}
        {device.holders.filter(isFirst).map((holder) => (
          <span key={keyOf(holder)}>
            {holder.use} {holder.run ? <a href={href(["runs", holder.run])}>{holder.name}</a> : <b>{holder.name}</b>}
            {holder.bytes !== null && `, ${bytes(holder.bytes)}`}
            {holder.job !== null && `, job ${holder.job}`}
            {!holder.exclusive && ", shared"}
          </span>
        ))}
      </p>
    </li>
  );
}

/** Several processes of one job, such as its workers, are shown once. */
function isFirst(holder: Holder, at: number, all: Holder[]): boolean {
  return all.findIndex((other) => keyOf(other) === keyOf(holder)) === at;
}

function keyOf({ use, run, name, job, pid }: Holder): string {
  return `${use} ${run ?? name} ${job ?? pid}`;
}

function figures({ celsius, watts, most_watts: most }: Device): string {
  const found = [];
  if (celsius != null) found.push(`${Math.round(celsius)} °C`);
  if (watts != null) found.push(`${Math.round(watts)}${most != null ? ` of ${Math.round(most)}` : ""} W`);
  return found.join(" · ");
}
