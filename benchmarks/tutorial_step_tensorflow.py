"""The training step of TensorFlow's convolutional VAE tutorial, in graph mode; `tutorial_step.py` starts it.

It reads a number of steps a line from standard input, makes them, and prints the seconds they took.
"""

import sys
import time

import tensorflow as tf

BATCH, LATENT = 32, 2
layers = tf.keras.layers
encoder = tf.keras.Sequential(
    [
        layers.Input((28, 28, 1)),
        layers.Conv2D(32, 3, 2, activation="relu"),
        layers.Conv2D(64, 3, 2, activation="relu"),
        layers.Flatten(),
        layers.Dense(2 * LATENT),
    ]
)
decoder = tf.keras.Sequential(
    [
        layers.Input((LATENT,)),
        layers.Dense(7 * 7 * 32, activation="relu"),
        layers.Reshape((7, 7, 32)),
        layers.Conv2DTranspose(64, 3, 2, "same", activation="relu"),
        layers.Conv2DTranspose(32, 3, 2, "same", activation="relu"),
        layers.Conv2DTranspose(1, 3, 1, "same"),
    ]
)
optimizer = tf.keras.optimizers.Adam(1e-4)
variables = encoder.trainable_variables + decoder.trainable_variables
assert sum(int(tf.size(variable)) for variable in variables) == 28_036 + 41_953


def log_normal(sample, mean, log_variance):
    return tf.reduce_sum(
        -0.5 * ((sample - mean) ** 2 * tf.exp(-log_variance) + log_variance + tf.math.log(2 * 3.141592653589793)), 1
    )


@tf.function
def step(images):
    with tf.GradientTape() as tape:
        mean, log_variance = tf.split(encoder(images), 2, axis=1)
        latents = tf.random.normal(tf.shape(mean)) * tf.exp(log_variance * 0.5) + mean
        logits = decoder(latents)
        reconstruction = -tf.reduce_sum(
            tf.nn.sigmoid_cross_entropy_with_logits(logits=logits, labels=images), [1, 2, 3]
        )
        prior, posterior = log_normal(latents, 0.0, 0.0), log_normal(latents, mean, log_variance)
        loss = -tf.reduce_mean(reconstruction + prior - posterior)
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    return loss


tf.random.set_seed(0)
batches = [tf.cast(tf.random.uniform((BATCH, 28, 28, 1)) > 0.8, tf.float32) for _ in range(50)]
step(batches[0])
print(tf.__version__, flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    for index in range(int(line)):
        loss = step(batches[index % len(batches)])
    float(loss)
    print(time.perf_counter() - start, flush=True)
